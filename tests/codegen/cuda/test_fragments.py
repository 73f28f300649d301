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
    """``z = 2 x y`` of matrices [16, depth] and [8, depth], through panels in shared memory."""
    word = "to_tf32({0}[at])" if kind == "tf32" else "to_bf16({0}[2 * at], {0}[2 * at + 1])"
    lines = ["rows = shared_float32(256)", "columns = shared_float32(128)"]
    lines += ["for at in range(lane(), 256, 32):", f"    rows[swizzled(at)] = {word.format('x')}"]
    lines += ["for at in range(lane(), 128, 32):", f"    columns[swizzled(at)] = {word.format('y')}"]
    lines += ["sync()", "g = divide(lane(), 4)", "t = modulo(lane(), 4)"]
    lines += ["upper = load4(rows, swizzled(16 * g + 4 * t))", "lower = load4(rows, swizzled(16 * (g + 8) + 4 * t))"]
    lines += ["right = load4(columns, swizzled(16 * g + 4 * t))", "zero = float32(0.0)"]
    lines += ["total = zero, zero, zero, zero", "for turn in range(2):"]
    lines += [f"    total = mma_{kind}(upper, lower, right, total)", "c, d, e, f = total"]
    lines += ["z[8 * g + 2 * t] = c", "z[8 * g + 2 * t + 1] = d"]
    lines += ["z[8 * (g + 8) + 2 * t] = e", "z[8 * (g + 8) + 2 * t + 1] = f"]
    head = "def product(x, y, z, scratch):\n"
    return Job(head + "".join(f"    {line}\n" for line in lines), "product", (F, F, F, SIZE), 32)


def multiplied(kind: str, compiled: Callable[[Job, str], Compiled] = compile_kernel) -> tuple[np.ndarray, np.ndarray]:
    x, y = (RNG.normal(size=(n, DEPTHS[kind])).astype(np.float32) for n in (16, 8))
    job = product_of_fragments(kind)
    z = launched(compiled(job, "sm_90"), 1, 32, x.ravel(), y.ravel(), np.zeros(128, np.float32), 0)[2]
    a, b = (ROUNDED[kind](m).astype(np.float64) for m in (x, y))
    return z.reshape(16, 8), 2 * a @ b.T


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
    four = np.float32(1), np.float32(2), np.float32(3), np.float32(4)
    zero = (np.float32(0),) * 4
    assert fragments.mma_tf32(four, zero, four, four) == (31, 2, 3, 4)
    words = tuple(to_bf16(v, v) for v in four)
    assert fragments.mma_bf16(words, words, words, zero) == (60, 0, 60, 0)


def test_a_panel_s_rows_are_read_and_written_without_bank_conflicts() -> None:
    """A quarter of a warp reads or writes four words a lane at once; words by themselves a whole warp."""
    assert sorted(map(swizzled, range(2048))) == list(range(2048))
    lane = np.arange(32)
    for row in range(0, 128, 8):
        at = swizzled(16 * (row + lane // 4) + 4 * (lane % 4))
        for quarter in at.reshape(4, 8):
            assert len({(first + k) % 32 for first in quarter for k in range(4)}) == 32
    for first in range(0, 128, 32):  # eight fours of neighbouring rows by four words
        for own in range(4):
            for word in range(0, 16, 4):
                at = swizzled(16 * (first + 4 * (lane % 8) + own) + word + lane // 8)
                assert len(set(at % 32)) == 32


def test_a_product_of_fragments_is_two_instructions_of_the_tensor_cores() -> None:
    for kind in DEPTHS:
        for arch in ("sm_80", "sm_90"):
            compiled = compile_kernel(product_of_fragments(kind), arch)
            assert compiled.ptx.count(b"mma.sync") == 4  # two turns, unrolled
            assert figures(compiled.cubin).local == 0


def test_below_compute_capability_8_there_are_none() -> None:
    with pytest.raises(CompileError, match="sm_80"):
        compile_kernel(at_each("to_tf32(a)"), "sm_75")
