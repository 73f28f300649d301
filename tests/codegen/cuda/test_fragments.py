"""Tensor cores: words round to nearest, fragments multiply as matrices do, and panels have no bank conflicts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda import fragments
from chainrule.codegen.cuda.fragments import swizzled, to_bf16, to_tf32
from chainrule.codegen.cuda.numba_cuda import compile_with_numba
from chainrule.codegen.cuda.objects import Compiled, CompileError, Job, Pointer, Size, compile_kernel
from chainrule.codegen.cuda.toolkit import figures
from tests.codegen.cuda.kernels import at_each
from tests.codegen.cuda.running import launched, values_of
from tests.cuda import rounding

F, SIZE = Pointer("float32"), Size()
RNG = np.random.default_rng(5)
DEPTHS = {"tf32": 16, "bf16": 32}
ROUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tf32": rounding.to_tf32,
    "bf16": lambda x: rounding.from_bf16(rounding.to_bf16(x)),
}


def product_of_fragments(kind: str) -> Job:
    """``z = x y`` of matrices [16, depth] and [16, depth], through panels of quads in shared memory."""
    word = "to_tf32({0}[at])" if kind == "tf32" else "to_bf16({0}[2 * at], {0}[2 * at + 1])"
    lines = ["rows = shared_float32(256)", "columns = shared_float32(256)", "zero = float32(0.0)"]
    lines += ["for at in range(lane(), 256, 32):", "    own = divide(at, 16)", "    k = modulo(at, 16)"]
    lines += ["    quad = swizzled(32 * divide(own, 2) + 4 * divide(k, 2))"]
    lines += [f"    rows[quad + 2 * modulo(k, 2) + modulo(own, 2)] = {word.format('x')}"]
    lines += [f"    columns[quad + 2 * modulo(own, 2) + modulo(k, 2)] = {word.format('y')}"]
    lines += ["sync()", "g = divide(lane(), 4)", "t = modulo(lane(), 4)"]
    lines += ["total = zero, zero, zero, zero, zero, zero, zero, zero", "for half in range(2):"]
    lines += ["    at = swizzled(32 * g + 4 * (2 * t + half))", "    left = load4(tail(rows, at), 0)"]
    lines += [f"    total = mma_{kind}(left, load4(columns, at), total)"]
    lines += ["a, b, c, d, e, f, g2, h = total", "first = 32 * g + 4 * t"]
    lines += ["store4(z, first, a, b, c, d)", "store4(z, first + 16, e, f, g2, h)"]
    head = "def product(x, y, z, scratch):\n"
    return Job(head + "".join(f"    {line}\n" for line in lines), "product", (F, F, F, SIZE), 32)


def multiplied(kind: str, compiled: Callable[[Job, str], Compiled] = compile_kernel) -> tuple[np.ndarray, np.ndarray]:
    x, y = (RNG.normal(size=(16, DEPTHS[kind])).astype(np.float32) for _ in range(2))
    job = product_of_fragments(kind)
    z = launched(compiled(job, "sm_90"), 1, 32, x.ravel(), y.ravel(), np.zeros(256, np.float32), 0)[2]
    a, b = (ROUNDED[kind](m).astype(np.float64) for m in (x, y))
    return z.reshape(16, 16), a @ b.T


@pytest.mark.parametrize("kind", DEPTHS)
def test_a_warp_multiplies_rounded_matrices(kind: str) -> None:
    found, want = multiplied(kind)
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("kind", DEPTHS)
def test_numba_cuda_multiplies_alike(kind: str) -> None:
    pytest.importorskip("numba_cuda", reason="the extra [cuda] is not installed")
    found, want = multiplied(kind, compile_with_numba)
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_words_of_a_fragment_that_are_swapped_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    good = fragments.assembled

    def swapped(builder, text, results, values, convergent=False):
        if convergent:
            values = [values[1], values[0], *values[2:]]
        return good(builder, text, results, values, convergent)

    monkeypatch.setattr(fragments, "assembled", swapped)
    for kind in DEPTHS:
        found, want = multiplied(kind)
        assert np.abs(found - want).max() > 0.1


SPECIAL = [0.0, -0.0, 1.0, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-12, 3e38, -3.4e38, 1e-39]
SPECIAL += [np.inf, -np.inf, np.nan]


def test_words_round_to_nearest_on_the_device_and_in_plain_python() -> None:
    x = np.concatenate([SPECIAL, RNG.normal(size=200)]).astype(np.float32)
    y = x[::-1].copy()
    words = {"to_tf32(a)": [to_tf32(v) for v in x], "to_bf16(a, b)": [to_bf16(u, v) for u, v in zip(x, y, strict=True)]}
    wanted = rounding.to_bf16(x).astype(np.uint32) | rounding.to_bf16(y).astype(np.uint32) << 16
    for (call, plain), want in zip(words.items(), (rounding.to_tf32(x).view(np.uint32), wanted), strict=True):
        found = values_of(call, x, *([y] if "b" in call[5:] else []))
        assert np.array_equal(found.view(np.uint32), want), call
        assert np.array_equal(np.array(plain, np.float32).view(np.uint32), want), call


def test_what_is_left_of_a_warp_in_plain_python_is_its_first_lane() -> None:
    """Of the words 1, 3 of a row and 2, 4 of the other, 1, 2 of a column and 3, 4 of the other."""
    four = np.float32(1), np.float32(2), np.float32(3), np.float32(4)
    total = tuple(np.float32(k) for k in range(8))
    assert fragments.mma_tf32(four, four, total) == (7, 16, 2, 3, 14, 27, 6, 7)
    words = tuple(to_bf16(v, v) for v in four)
    assert fragments.mma_bf16(words, words, (0,) * 8) == (14, 30, 0, 0, 20, 44, 0, 0)


def banks(at: np.ndarray) -> list[int]:
    """How many banks the lanes of each quarter of a warp reach, of whom each takes a quad at once."""
    quads = swizzled(at).reshape(4, 8)[:, :, None] + np.arange(4)
    return [len(set(quarter.ravel() % 32)) for quarter in quads]


def test_a_panel_s_quads_are_read_and_written_without_bank_conflicts() -> None:
    assert sorted(map(swizzled, range(2048))) == list(range(2048))
    lane = np.arange(32)
    for pair in range(0, 64, 8):
        for half in range(2):
            assert banks(32 * (pair + lane // 4) + 4 * (2 * (lane % 4) + half)) == [32] * 4  # a fragment; rows' words
    for pair in range(0, 64, 16):
        for half in range(2):
            for quad in range(0, 8, 4):
                assert banks(32 * (pair + 2 * (lane % 8) + half) + 4 * (quad + lane // 8)) == [32] * 4  # words' rows


def test_a_product_of_fragments_is_two_instructions_of_the_tensor_cores() -> None:
    for kind in DEPTHS:
        for arch in ("sm_80", "sm_90"):
            compiled = compile_kernel(product_of_fragments(kind), arch)
            assert compiled.ptx.count(b"mma.sync") == 4  # two turns, unrolled
            assert figures(compiled.cubin).local == 0


def test_below_compute_capability_8_there_are_none() -> None:
    with pytest.raises(CompileError, match="sm_80"):
        compile_kernel(at_each("to_tf32(a)"), "sm_75")
