"""Products with numbers in place of polynomials."""

from __future__ import annotations

from msgspec.structs import replace

from chainrule.executable import ONE, Matrix, Multiply
from chainrule.runtime.cuda.device import DeviceMemoryError, Operand, product_of

BATCH = ((1.0, ("batch",)),)
WIDTH = ((3.0, ()),)
MULTIPLY = Multiply(
    rows=BATCH, columns=WIDTH, inner=((5.0, ()),),
    left=Matrix(1, ((2.0, ()),), ((5.0, ()),), ONE),
    right=Matrix(0, (), ONE, ((5.0, ()),)),
    target=Matrix(2, (), WIDTH, ONE, ((3.0, ("batch",)),)),
    scale=0.5,
)  # fmt: skip


def test_a_product_has_the_sizes_of_the_batch_and_the_addresses_of_its_matrices():
    product = product_of(MULTIPLY, "float64", 8, (1000, 2000, 3000), {"batch": 7})
    assert (product.rows, product.columns, product.inner, product.batch) == (7, 3, 5, 1)
    assert product.left == Operand(2016, 5, 1, 0)
    assert product.right == Operand(1000, 1, 5, 0)
    assert product.target == Operand(3000, 3, 1, 21)
    assert (product.scale, product.added, product.bias, product.element) == (0.5, None, None, "float64")


def test_what_follows_a_product_has_addresses_too():
    added, bias = Matrix(1, (), WIDTH, ONE), Matrix(0, ((2.0, ()),), (), ONE)
    multiply = replace(MULTIPLY, added=added, beta=0.5, bias=bias, activation="relu")
    product = product_of(multiply, "float32", 4, (1000, 2000, 3000), {"batch": 7})
    assert (product.added, product.beta) == (Operand(2000, 3, 1, 0), 0.5)
    assert (product.bias, product.activation) == (Operand(1008, 0, 1, 0), "relu")


def test_a_product_of_nothing_is_none():
    assert product_of(MULTIPLY, "float32", 4, (0, 0, 0), {"batch": 0}) is None


def test_too_little_memory_says_what_is_asked_what_is_free_what_for_and_a_way_out():
    text = str(DeviceMemoryError(3_000_000, 2_000_000, 4_000_000).during("a step keeps much"))
    assert "3,000,000 bytes are asked for, 2,000,000 of 4,000,000 are free" in text
    assert "a step keeps much" in text and "Way out: a smaller batch" in text
