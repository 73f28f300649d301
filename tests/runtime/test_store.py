"""Parameters start from their own streams, and are seen as a mapping of copies."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.executable import Init
from chainrule.runtime.buffers import address
from chainrule.runtime.store import Store, _drawn
from tests.runtime.programs import fixed, regression


def drawn(init, shape, seed=1, path="h.W", dtype=np.float64):
    array = np.empty(shape, dtype)
    array[...] = _drawn(array.shape, init, seed, path)
    return array


def test_laws_are_what_they_say():
    uniform = drawn(Init("uniform", (-0.5, 1.5)), (200, 200))
    assert uniform.min() >= -0.5 and uniform.max() < 1.5 and abs(uniform.mean() - 0.5) < 0.01
    normal = drawn(Init("normal", (2.0, 3.0)), (200, 200))
    assert abs(normal.mean() - 2) < 0.1 and abs(normal.std() - 3) < 0.1
    assert (drawn(Init("constant", (0.25,)), (3, 4)) == 0.25).all()


@pytest.mark.parametrize("shape", [(6, 6), (8, 3), (3, 8), (2, 3, 4)])
def test_orthogonal_matrices_are_orthonormal_along_their_shorter_side(shape):
    columns = shape[-1]
    matrix = drawn(Init("orthogonal", (0.5, float(columns))), shape).reshape(-1, columns) / 0.5
    rows = matrix.shape[0]
    gram = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    assert np.allclose(gram, np.eye(min(rows, columns)), atol=1e-12)


def test_each_stacks_independent_matrices():
    stacked = drawn(Init("orthogonal", (1.0, 5.0), each=1), (5, 4, 5))
    for k in range(4):
        assert np.allclose(stacked[:, k] @ stacked[:, k].T, np.eye(5), atol=1e-12)
        assert not np.allclose(stacked[:, k], stacked[:, (k + 1) % 4])


def test_a_parameter_depends_on_seed_and_path_alone():
    init = Init("normal", (0.0, 1.0))
    assert np.array_equal(drawn(init, (9,)), drawn(init, (9,)))
    assert not np.array_equal(drawn(init, (9,)), drawn(init, (9,), seed=2))
    assert not np.array_equal(drawn(init, (9,)), drawn(init, (9,), path="h.V"))
    assert np.array_equal(drawn(init, (9,), dtype=np.float32), drawn(init, (9,)).astype(np.float32))


def filled(seed=1) -> Store:
    store = Store(seed)
    store.admit(regression()[0])
    return store


def test_reading_copies_and_assigning_writes():
    store = filled()
    before = store.params["w"]
    before[...] = 7
    assert not (store.params["w"] == 7).any()
    store.params["w"] = [1, 2, 3]
    assert store.params["w"].tolist() == [1, 2, 3] and store.params["w"].dtype == np.float32
    assert dict(store.params).keys() == {"w"} and len(store.states) == 1
    assert (store.states["speed"] == 0.5).all()
    store.states.update(speed=np.zeros(3))
    assert not store.states["speed"].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.params.__setitem__("w", np.zeros(4)), "parameter w has shape (3,), given: (4,)"),
        (lambda s: s.params.__setitem__("w", 1.0), "given: ()"),
        (lambda s: s.params.__setitem__("w", ["a"] * 3), "dtype"),
        (lambda s: s.params["W"], "there is no parameter 'W'"),
        (lambda s: s.states["sped"], "did you mean 'speed'?"),
        (lambda s: s.params.pop("w"), "belongs to the model"),
        (lambda s: s.scalars["rat"], "did you mean 'rate'?"),
        (lambda s: s.scalars.__setitem__("rates", 1.0), "did you mean 'rate'?"),
    ],
)
def test_wrong_assignments_are_named_with_a_way_out(change, said):
    with pytest.raises(ChainruleError) as caught:
        change(filled())
    assert said in str(caught.value) and "Way out" in str(caught.value)


def test_restarting_gives_the_first_state_again():
    store = filled()
    first = store.params["w"]
    store.params["w"] = np.zeros(3)
    store.states["speed"] = np.zeros(3)
    store.step = 9
    store.restart()
    assert np.array_equal(store.params["w"], first) and (store.states["speed"] == 0.5).all() and store.step == 0
    store.restart(seed=2)
    assert not np.array_equal(store.params["w"], first) and store.seed == 2


def test_any_integer_is_a_seed():
    for seed in (0, -1, 2**63, 2**64 - 1, 2**200):
        assert filled(seed).params["w"].shape == (3,)


def test_programs_of_different_shape_or_dtype_do_not_share_a_store():
    executable, _ = regression()
    wide = tuple(msgspec.structs.replace(b, shape=(fixed(4),)) if b.name == "w" else b for b in executable.buffers)
    with pytest.raises(ChainruleError, match=r"w is float32\[3\]"):
        filled().admit(msgspec.structs.replace(executable, buffers=wide))


def test_arrays_are_aligned():
    store = filled()
    for array in (
        *store.params.arrays.values(),
        *store.states.arrays.values(),
        *store.scalars.arrays.values(),
        store.clock,
    ):
        assert array.ctypes.data % 64 == 0


def test_what_is_admitted_together_lies_side_by_side_and_on_cache_lines():
    store = filled()
    spaces = (store.params, store.states)
    starts = sorted((address(array), array.nbytes) for space in spaces for array in space.arrays.values())
    assert len(starts) > 1
    for (start, count), (following, _) in pairwise(starts):
        assert start % 64 == 0 and following == start + -(-count // 64) * 64
