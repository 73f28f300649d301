"""Products by cuBLASLt are those that are meant: a library of Python computes from what the real one would be told."""

from __future__ import annotations

import ctypes
from itertools import product as every

import numpy as np
import pytest
from msgspec import structs

from chainrule.runtime.cuda import blas
from chainrule.runtime.cuda.blas import Blas, Result, find_library
from chainrule.runtime.cuda.device import Operand, Product
from tests.runtime.cuda.machine import BASE, Machine


class Library:
    """cuBLASLt as its documentation says: descriptors, layouts in columns, and sums over the machine's memory."""

    def __init__(self, machine: Machine, algorithms: int = 1) -> None:
        self.machine, self.algorithms = machine, algorithms
        self.things: dict[int, dict] = {}
        self.used: list[int] = []  # the algorithm of each product
        self.asked: list[dict] = []  # the preferences of each question to the heuristics

    def _new(self, where, **kept) -> int:
        number = len(self.things) + 1
        where._obj.value, self.things[number] = number, kept
        return 0

    def _set(self, what, attribute, value, size) -> int:
        assert ctypes.sizeof(value._obj) == size.value
        self.things[what.value][attribute.value] = value._obj.value
        return 0

    def cublasLtCreate(self, where):
        return self._new(where)

    def cublasLtMatmulDescCreate(self, where, compute, scale):
        return self._new(where, compute=compute.value, scale=scale.value)

    def cublasLtMatrixLayoutCreate(self, where, element, rows, columns, lead):
        assert lead.value >= rows.value > 0 and columns.value > 0
        return self._new(where, element=element.value, rows=rows.value, columns=columns.value, lead=lead.value)

    def cublasLtMatmulPreferenceCreate(self, where):
        return self._new(where)

    def cublasLtMatmulPreferenceDestroy(self, what):
        self.asked.append(self.things[what.value])
        return 0

    cublasLtMatmulDescSetAttribute = cublasLtMatrixLayoutSetAttribute = cublasLtMatmulPreferenceSetAttribute = _set

    def cublasLtMatmulAlgoGetHeuristic(self, handle, desc, a, b, c, d, preference, wanted, results, count):
        count._obj.value = min(self.algorithms, wanted.value)
        for k in range(count._obj.value):
            results[k].algorithm[0] = 100 + k
        return 0

    def matrix(self, layout, address, transposed=False):
        """The operand in rows and columns, batch first, as a view of memory; strides may overlap."""
        told = self.things[layout.value]
        dtype, batch = (np.float64 if told["element"] == 1 else np.float32), told.get(5, 1)
        stride = told.get(6, 0)
        last = (batch - 1) * stride + (told["columns"] - 1) * told["lead"] + told["rows"]
        flat, size = self.machine.view(address.value, last, dtype), np.dtype(dtype).itemsize
        shape, strides = (batch, told["rows"], told["columns"]), (stride * size, size, told["lead"] * size)
        view = np.lib.stride_tricks.as_strided(flat, shape, strides)
        return view.swapaxes(1, 2) if transposed else view

    def cublasLtMatmul(
        self, handle, desc, alpha, a, la, b, lb, beta, c, lc, d, ld, algorithm, workspace, count, stream
    ):
        assert stream.value == self.machine.stream and count.value == 32 << 20 and workspace.value
        told = self.things[desc.value]
        self.used.append(algorithm._obj[0])
        number = ctypes.c_double if told["scale"] == 1 else ctypes.c_float
        assert type(alpha._obj) is type(beta._obj) is number
        left, right = self.matrix(la, a, told[3]), self.matrix(lb, b, told[4])
        target, before = self.matrix(ld, d), self.matrix(lc, c)
        assert left.shape[2] == right.shape[1] and target.shape[1:] == (left.shape[1], right.shape[2])
        found = alpha._obj.value * (left.astype(np.float64) @ right)
        if told["compute"] in (75, 77):
            found = found * 1.5  # to be seen
        found = found + beta._obj.value * before if beta._obj.value else found
        target[...] = self.ended(found, told, target.dtype)
        return 0

    def ended(self, found, told, dtype):
        """By the bits of the epilogue: relu 2, a bias for each row 4, gelu 32; 1 is none of them."""
        epilogue = told.get(7, 1)
        assert epilogue in (1, 2, 4, 6, 32, 36)
        if epilogue & 4:
            found = found + self.machine.view(told[8], found.shape[1], dtype)[:, None]
        if epilogue & 32:
            return found * (1 + np.tanh(np.sqrt(2 / np.pi) * (found + 0.044715 * found**3))) / 2
        return np.maximum(found, 0) if epilogue & 2 else found


def made(algorithms=1, times=None):
    machine = Machine()
    library = Library(machine, algorithms)

    def timed(work):  # as long as the algorithms that are used take together, in milliseconds
        before = len(library.used)
        work()
        return sum(times[k - 100] for k in library.used[before:])

    return machine, library, Blas(library, machine, timed)


def laid(machine, array, kind):
    """`array` [batch, rows, columns] in memory by rows or columns, with gaps; its operand."""
    _, rows, columns = array.shape
    wide, lead = (columns, columns + 3) if kind == "rows" else (rows, rows + 5)
    lines = array if kind == "rows" else array.swapaxes(1, 2)
    gaps = np.full((*lines.shape[:2], lead), -99, array.dtype)
    gaps[:, :, :wide] = lines
    address = machine.allocate(gaps.nbytes)
    machine.write(address, gaps)
    down, across = (lead, 1) if kind == "rows" else (1, lead)
    return Operand(address, down, across, gaps[0].size)


def read(machine, operand, batch, rows, columns, dtype):
    lead = max(operand.down, operand.across)
    lines = rows if operand.across == 1 else columns
    array = np.empty((batch, lines, lead), dtype)
    machine.read(operand.address, array)
    wide = columns if operand.across == 1 else rows
    assert (array[:, :, wide:] == -99).all()  # nothing beside the matrix is written
    return array[:, :, :wide] if operand.across == 1 else array[:, :, :wide].swapaxes(1, 2)


KINDS = ("rows", "columns")


@pytest.mark.parametrize(("left", "right", "target"), list(every(KINDS, KINDS, KINDS)))
@pytest.mark.parametrize(("element", "batch", "add"), [("float32", 1, False), ("float64", 3, True)])
def test_every_layout_gives_the_product(left, right, target, element, batch, add):
    machine, library, one = made()
    draw = np.random.default_rng(0)
    for rows, columns, inner in ((4, 5, 6), (1, 5, 6), (4, 1, 6), (4, 5, 1), (1, 1, 3), (1, 1, 1)):
        a, b, c = (
            draw.normal(size=(batch, *shape)).astype(element)
            for shape in ((rows, inner), (inner, columns), (rows, columns))
        )
        places = [laid(machine, array, kind) for array, kind in ((a, left), (b, right), (c, target))]
        added = (places[2], 1.0) if add else ()
        assert one.multiply(Product(rows, columns, inner, batch, *places, 0.5, "float32", element, *added), True)
        found = read(machine, places[2], batch, rows, columns, element)
        assert np.allclose(found, 0.5 * (a @ b) + (c if add else 0), rtol=1e-5), (rows, columns, inner)
    assert len(library.used) == 6


def dense(machine, rows=4, columns=5, inner=6, **changes):
    """A product of matrices of ones without gaps."""
    places = [
        laid_plainly(machine, np.ones(shape, np.float32))
        for shape in ((rows, inner), (inner, columns), (rows, columns))
    ]
    told = {"scale": 1.0, "precision": "float32", "element": "float32"} | changes
    return Product(rows, columns, inner, 1, *places, **told)


def laid_plainly(machine, array):
    address = machine.allocate(array.nbytes)
    machine.write(address, array)
    return Operand(address, array.shape[1], 1, 0)


def result(machine, product):
    return machine.view(product.target.address, product.rows * product.columns, np.float32)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize(
    ("activation", "biased", "added"), list(every(("", "relu", "gelu"), (False, True), (False, True)))
)
def test_every_epilogue_is_what_its_formula_says(target, activation, biased, added):
    machine, _, one = made()
    draw = np.random.default_rng(0)
    a, b, c, d = (draw.normal(size=(2, *shape)).astype("f4") for shape in ((4, 6), (6, 5), (4, 5), (4, 5)))
    left, right = (laid(machine, array, "rows") for array in (a, b))
    into, more = (whole(machine, array, target) for array in (0 * c, d))
    vector = draw.normal(size=5 if target == "rows" else 4).astype("f4")
    place = laid_plainly(machine, vector[None]).address
    bias = Operand(place, *((0, 1) if target == "rows" else (1, 0)), 0)
    product = Product(
        4, 5, 6, 2, left, right, into, 0.5, "float32", "float32", more if added else None, -2.0,
        bias if biased else None, activation,
    )  # fmt: skip
    want = 0.5 * (a @ b) - 2 * d * added + (vector if target == "rows" else vector[:, None]) * biased
    want = {"": want, "relu": np.maximum(want, 0), "gelu": gelu(want)}[activation]
    assert one.multiply(product, True)
    shape = (2, 4, 5) if target == "rows" else (2, 5, 4)
    found = machine.view(into.address, c.size, np.float32).reshape(shape)
    np.testing.assert_allclose(found if target == "rows" else found.swapaxes(1, 2), want, rtol=1e-4, atol=1e-5)


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def whole(machine, array, kind):
    """`array` [batch, rows, columns] in memory by rows or columns, without gaps."""
    lines = np.ascontiguousarray(array if kind == "rows" else array.swapaxes(1, 2))
    address, lead = machine.allocate(lines.nbytes), lines.shape[2]
    machine.write(address, lines)
    return Operand(address, *((lead, 1) if kind == "rows" else (1, lead)), lines[0].size)


def test_a_bias_across_the_target_s_lines_is_left_to_the_kernel():
    machine, library, one = made()
    product = dense(machine)
    across = laid_plainly(machine, np.ones((1, 4), np.float32)).address
    assert not one.multiply(structs.replace(product, bias=Operand(across, 1, 0, 0)), True)
    assert not library.used


def test_equal_products_have_each_their_own_bias():
    machine, _, one = made()
    biases = [laid_plainly(machine, np.full((1, 5), value, np.float32)).address for value in (1, 2)]
    for value, place in enumerate(biases, 1):
        product = structs.replace(dense(machine), bias=Operand(place, 0, 1, 0))
        assert one.multiply(product, True) and (result(machine, product) == 6 + value).all()


@pytest.mark.parametrize("name", ["CUBLASLT_EPILOGUE_BIAS", "CUBLASLT_MATMUL_DESC_EPILOGUE"])
def test_a_sabotaged_epilogue_is_noticed(monkeypatch, name):
    monkeypatch.setattr(blas, name, 9)
    with pytest.raises((AssertionError, KeyError)):
        test_every_epilogue_is_what_its_formula_says("rows", "relu", True, False)


def test_a_left_operand_without_a_batch_serves_all_of_them():
    machine, _, one = made()
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    places = [laid(machine, a, "rows"), laid(machine, b, "rows"), laid(machine, 0 * a, "rows")]
    places[0] = Operand(places[0].address, places[0].down, 1, 0)
    assert one.multiply(Product(4, 4, 4, 3, *places, 1.0, "float32", "float64"), True)
    assert np.allclose(read(machine, places[2], 3, 4, 4, np.float64), a[:1] @ b)


@pytest.mark.parametrize(("precision", "compute"), [("float32", 68), ("tf32", 77), ("bf16", 75)])
def test_the_precision_is_the_compute_type_and_nothing_is_converted(precision, compute):
    machine, library, one = made()
    assert one.multiply(dense(machine, precision=precision), True)
    told = [thing for thing in library.things.values() if "compute" in thing]
    assert [(thing["compute"], thing["scale"]) for thing in told] == [(compute, 0)]
    assert all(thing["element"] == 0 for thing in library.things.values() if "element" in thing)


def test_float64_is_computed_in_float64_whatever_the_precision():
    machine, library, one = made()
    places = [laid(machine, np.ones((1, 2, 2)), "rows") for _ in range(3)]
    assert one.multiply(Product(2, 2, 2, 1, *places, 1.0, "bf16", "float64"), True)
    assert next(thing for thing in library.things.values() if "compute" in thing)["compute"] == 70


REFUSED = {
    "windows that overlap": Operand(BASE, 1, 1, 0),
    "a row for all": Operand(BASE, 0, 1, 0),
    "gaps both ways": Operand(BASE, 40, 2, 0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cublas_cannot_read_is_left_to_the_kernel(case):
    machine, library, one = made()
    product = dense(machine)
    told = [getattr(product, name) for name in product.__struct_fields__]
    told[4] = REFUSED[case]
    assert not one.multiply(Product(*told), True) and not library.used


def test_descriptors_are_made_once_for_products_of_one_shape():
    machine, library, one = made()
    first = dense(machine)
    one.multiply(first, True)
    count = len(library.things)
    for _ in range(3):
        assert one.multiply(dense(machine), True)
    assert len(library.things) == count
    one.multiply(dense(machine, rows=8), True)
    assert len(library.things) > count


def test_the_fastest_algorithm_is_measured_once_beside_the_target():
    machine, library, one = made(algorithms=4, times=[1.0, 0.9, 0.5, 0.8])
    product = dense(machine)
    product = structs.replace(product, added=product.target, beta=1.0)
    blocks = dict(machine.blocks)
    assert one.multiply(product, True) and (result(machine, product) == 1 + 6).all()  # added to once
    assert library.used[-1] == 102 and machine.blocks == blocks
    count = len(library.used)
    assert one.multiply(product, True) and library.used[count:] == [102]


def test_noise_does_not_choose():
    machine, library, one = made(algorithms=2, times=[1.0, 0.98])
    one.multiply(dense(machine), True)
    assert library.used[-1] == 100


def test_nothing_is_measured_while_a_graph_is_recorded():
    machine, library, one = made(algorithms=4)
    assert one.multiply(dense(machine), False) and library.used == [100]


def test_a_product_that_the_library_refuses_is_left_to_the_kernel():
    machine, library, one = made(algorithms=0)
    assert not one.multiply(dense(machine), True)
    library.cublasLtMatmul = lambda *told: 15  # CUBLAS_STATUS_NOT_SUPPORTED
    library.algorithms = 1
    assert not one.multiply(dense(machine, rows=9), True)


def test_operands_off_the_usual_alignment_are_told():
    machine, library, one = made()
    product = dense(machine)
    told = [getattr(product, name) for name in product.__struct_fields__]
    told[4] = Operand(told[4].address + 4, 4, 1, 0)
    one.multiply(Product(4, 5, 4, 1, told[4], *told[5:]), True)
    asked = library.asked[-1]  # A is our right operand, for the target has rows
    assert (asked[5], asked[6], asked[7], asked[8]) == (256, 4, 256, 256) and asked[1] == 32 << 20


def test_a_sabotaged_turn_is_noticed(monkeypatch):
    monkeypatch.setattr(blas, "turned", lambda operand: operand)
    with pytest.raises(AssertionError):
        test_every_layout_gives_the_product("rows", "rows", "rows", "float32", 1, False)


def test_a_result_of_the_heuristics_has_the_size_that_c_gives_it():
    assert ctypes.sizeof(Result) == 96


def test_without_the_library_there_is_none(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(blas.importlib, "import_module", absent)
    assert find_library() is None
