"""Arrays go in and out of the GPU uncopied, by both protocols; what cannot is said in words."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.runtime.cuda import arrays
from chainrule.runtime.cuda.arrays import DeviceArray, adopt, is_on_gpu
from tests.runtime.cuda.machine import Machine

X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def ours(machine):
    found = DeviceArray.empty(machine, X.shape, X.dtype)
    found.fill(X)
    return found


class ByInterface:
    """An array of another library with ``__cuda_array_interface__`` alone, as numba's."""

    def __init__(self, **told):
        self.__cuda_array_interface__ = {"shape": (3, 4), "typestr": "<f4", "data": (4096, False), "version": 3} | told


class ByDLPack:
    """An array of another library with DLPack, as torch's: its memory is the host's, and it says the GPU's."""

    def __init__(self, array, ordinal=0):
        self.array, self.ordinal, self.streams = array, ordinal, []

    def __dlpack_device__(self):
        return 2, self.ordinal

    def __dlpack__(self, stream=None, max_version=None):
        self.streams.append(stream)
        return self.array.__dlpack__()


def test_what_lies_on_a_gpu_is_known(ours):
    assert is_on_gpu(ours) and is_on_gpu(ByInterface()) and is_on_gpu(ByDLPack(X))
    assert not any(is_on_gpu(here) for here in (X, [1.0], 2.0, None, X[0, 0], memoryview(b"")))


def test_a_part_along_the_first_axis_lies_where_it_lay(ours):
    part = ours[1:3]
    assert part.address == ours.address + 16 and part.owner is ours.owner
    assert np.array_equal(part.numpy(), X[1:3]) and ours[2:9].shape == (1, 4) and ours[3:1].size == 0
    with pytest.raises(ValueError, match="has no gaps"):
        ours[::2]


def test_an_array_reads_like_its_numbers(ours):
    assert np.array_equal(ours.numpy(), X) and np.array_equal(np.asarray(ours), X)
    assert np.asarray(ours, np.float64).dtype == np.float64
    assert (ours.ndim, ours.size, ours.nbytes, len(ours)) == (2, 12, 48, 3)
    assert repr(ours) == "DeviceArray(float32[3, 4] on a machine of Python)"
    with pytest.raises(ValueError, match="without a copy"):
        np.array(ours, copy=False)


def test_others_find_an_array_by_the_interface(ours):
    told = ours.__cuda_array_interface__
    assert told["data"] == (ours.address, False) and told["strides"] is None and told["stream"] is None
    assert (told["shape"], told["typestr"], told["version"]) == ((3, 4), "<f4", 3)


def test_others_get_a_capsule_that_keeps_the_array(ours, monkeypatch):
    class Views:
        @staticmethod
        def from_cuda_array_interface(array, stream):
            assert array is ours and stream == -1
            return type("View", (), {"__dlpack__": lambda self, max_version: ("capsule", max_version)})()

    monkeypatch.setattr(arrays, "_views", lambda: Views)
    assert ours.__dlpack_device__() == (2, 0)
    assert ours.__dlpack__(stream=5, max_version=(1, 0)) == ("capsule", (1, 0))
    for refused in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError):
            ours.__dlpack__(**refused)


def test_an_array_by_the_interface_is_taken_where_it_lies_after_its_stream(machine):
    found = adopt("x", ByInterface(stream=9), machine)
    assert (found.address, found.shape, found.dtype) == (4096, (3, 4), np.float32)
    assert machine.heard("after") == [9]
    adopt("x", ByInterface(stream=None), machine)
    assert machine.heard("after") == []


def test_an_array_by_dlpack_is_taken_where_it_lies_and_told_our_stream(machine):
    pytest.importorskip("cuda.core")
    other = ByDLPack(X)
    found = adopt("x", other, machine)
    assert (found.address, found.shape, found.dtype.name) == (X.ctypes.data, (3, 4), "float32")
    assert other.streams == [machine.stream]


def test_a_row_of_rows_is_contiguous_whatever_its_strides_say(machine):
    adopt("x", ByInterface(shape=(1, 4), strides=(999, 4)), machine)
    adopt("x", ByInterface(shape=(0, 4), strides=(1, 1)), machine)
    adopt("x", ByInterface(shape=(3, 4), strides=(16, 4)), machine)


REFUSED = {
    "transposed": (ByInterface(strides=(4, 12)), ["input x lies on the GPU with gaps or transposed", ".contiguous()"]),
    "masked": (ByInterface(mask=object()), ["cannot be read as an array on a GPU", "it is masked"]),
    "broken": (ByInterface(typestr="no"), ["cannot be read as an array on a GPU", "Way out"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_is_said_with_a_way_out(machine, case):
    value, said = REFUSED[case]
    with pytest.raises(ChainruleError) as caught:
        adopt("x", value, machine)
    for words in said:
        assert words in str(caught.value), str(caught.value)


def test_an_array_of_another_gpu_is_refused(machine):
    pytest.importorskip("cuda.core")
    with pytest.raises(ChainruleError, match="x lies on GPU 3, the program runs on GPU 0"):
        adopt("x", ByDLPack(X, 3), machine)
    turned = ByDLPack(X.T)
    with pytest.raises(ChainruleError, match="transposed"):
        adopt("x", turned, machine)
