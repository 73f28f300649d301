"""numba.cuda compiles generated source too, to kernels that give what ours give."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="the extra [cuda] is not installed")

from numba import cuda
from numba.cuda import types
from numba.cuda.typing.templates import builtin_registry

from chainrule.codegen.cuda import numba_cuda, reductions
from chainrule.codegen.cuda.numba_cuda import compile_with_numba
from chainrule.codegen.cuda.objects import NAMES, CompileError, Job, compile_kernel, symbol_of
from chainrule.codegen.lowering import TRACED
from chainrule.codegen.objects import plain
from chainrule.errors import ChainruleError
from chainrule.philox import uniforms
from tests.codegen.cuda.kernels import SIZE, WIDE, B, D, F, I
from tests.codegen.cuda.programs import run_on_gpu
from tests.codegen.cuda.running import launched
from tests.codegen.cuda.test_mapping import PROGRAMS, program_of
from tests.codegen.running import Values, drawn
from tests.codegen.test_cpu_laws import assert_agrees, wanted
from tests.cuda.device import Interpreter

BATCH = {
    "mlp_small": 5,
    "cross_entropy": 5,
    "cross_entropy_narrow": 37,
    "layer_norm": 3,
    "embedding": 5,
    "convolution": 1,
}


def by_numba(name: str, values: dict[str, np.ndarray], element: str) -> Values:
    """What every buffer holds after the program's kernels, compiled by numba.cuda, ran on the interpreter."""
    emit = importlib.import_module("chainrule.codegen.cuda.emit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emit, "compile_kernels", lambda jobs, arch: [compile_with_numba(job, arch) for job in jobs])
        return run_on_gpu(program_of(name), {"batch": BATCH[name]}, values, element)


@pytest.mark.parametrize(
    ("name", "element"), [*((name, "float32") for name in BATCH), ("mlp_small", "float64"), ("layer_norm", "float64")]
)
def test_both_compilers_programs_agree_with_the_reference_and_each_other(name: str, element: str) -> None:
    (graph, _), sizes = PROGRAMS[name], {"batch": BATCH[name]}
    values, program = drawn(graph, sizes), program_of(name)
    theirs, want = by_numba(name, values, element), wanted(graph, values, program)
    ours = run_on_gpu(program, sizes, values, element)
    assert_agrees(theirs, want, element)
    assert_agrees(theirs, {buffer: ours[buffer] for buffer in want}, element)


def test_a_reduction_that_leaves_out_a_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    within = reductions.within
    monkeypatch.setattr(reductions, "within", lambda x, combine, width: within(x, combine, max(width // 2, 1)))
    values = drawn(PROGRAMS["cross_entropy"][0], {"batch": BATCH["cross_entropy"]})
    theirs = by_numba("cross_entropy", values, "float32")
    with pytest.raises(AssertionError):
        assert_agrees(theirs, wanted(PROGRAMS["cross_entropy"][0], values, program_of("cross_entropy")), "float32")


def test_numba_cuda_knows_all_that_source_can_name() -> None:
    known = {id(function) for function, _ in builtin_registry.globals}
    assert [name for name, function in NAMES.items() if callable(function) and id(function) not in known] == []


SCALARS = [name for name, function in NAMES.items() if callable(function) and function in TRACED and name != "fma"]
PAIRS = ("power", "atan2", "maximum", "minimum", "min", "max")


@pytest.mark.parametrize("element", ["float32", "float64"])
def test_every_scalar_function_gives_the_same_bits(element: str) -> None:
    """But for polygammas: which product and sum of theirs libNVVM fuses is its choice."""
    calls = [f"{name}(x[i], x[n - 1 - i])" if name in PAIRS else f"{name}(x[i])" for name in SCALARS]
    calls += ["fma(x[i], x[n - 1 - i], x[0])", "where(x[i] > x[0], x[i], x[0])", "accumulate(x[i], int64(x[i]))"]
    lines = "".join(f"        y[{k} * n + i] = {call}\n" for k, call in enumerate(calls))
    head = "def each(x, y, n, scratch):\n    i = block() * 64 + thread()\n    if i < n:\n"
    kind = {"float32": F, "float64": D}[element]
    job = Job(head + lines, "each", (kind, kind, SIZE, SIZE), 64)
    x = np.array([1.5, -0.25, 0.0, -0.0, 1.0, 7.25, -3.5, 1e-3, 40.0, -90.0, np.inf, -np.inf, np.nan], element)
    y = np.zeros(len(calls) * len(x), element)
    ours, theirs = (
        launched(compiled(job, "sm_90"), 1, 64, x, y, len(x), 0)[1].reshape(len(calls), -1)
        for compiled in (compile_kernel, compile_with_numba)
    )
    for call, left, right in zip(calls, ours, theirs, strict=True):
        bound = 8 * np.finfo(element).eps if "gamma" in call else 0
        np.testing.assert_allclose(right, left, rtol=bound, err_msg=call)
        assert np.array_equal(np.signbit(left[left == 0]), np.signbit(right[right == 0])), call


OTHERS = Job(
    """
def others(a, b, c, d, far, n, scratch):
    kept = local_bool(4)
    row = shared_int64(64)
    t = thread()
    kept[0] = a[t]
    kept[1] = not a[t]
    row[t] = b[t]
    sync()
    far[block() * 64 + t] = row[63 - t]
    u, v = load2(b, t - modulo(t, 2))
    w = divide(u + v, 3)
    sync_warp()
    a[t] = kept[1] & kept[0] | (lane() == 3)
    b[t] = far[block() * 64 + t] + w + warp() + blocks()
    c[t] = float32(int64(c[t])) + uniform(n, 3, 1, t) + uniform(n, 3, 1, t, 2)
    s = block_sum(b[t], 2) + block_max(b[t], 2) - block_min(b[t], 2)
    sync()
    store2(b, t - modulo(t, 2), s, s + warp_sum(t, 4))
    d[t] = float64(c[t]) * block_prod(d[t], 2) + warp_max(d[t]) - warp_min(d[t], 8) * warp_prod(d[t], 2)
""",
    "others",
    (B, I, F, D, I, SIZE, SIZE),
    64,
)


def test_places_arrays_accesses_and_reductions_mean_the_same() -> None:
    t = np.arange(64)
    given = [t % 3 == 0, t * 5, np.float32(t * 1.75 - 50), 1 + t / 1000, 0 * t]
    ours, theirs = (
        launched(compiled(OTHERS, "sm_90"), 1, 64, *given, 11, 0, races=False)
        for compiled in (compile_kernel, compile_with_numba)
    )
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(right, left, rtol=1e-14 if left.dtype == np.float64 else 0)


def test_draws_are_philox_s() -> None:
    source = "def draw(y, n, scratch):\n    y[thread()] = uniform(n, 77, 5, thread() - 3, 1)\n"
    compiled = compile_with_numba(Job(source, "draw", (F, SIZE, SIZE), 32), "sm_90")
    (y,) = launched(compiled, 1, 32, np.zeros(32, np.float32), -9, 0)
    assert np.array_equal(y, uniforms(-9, 77, 5, np.arange(32) - 3, 1))


def test_conversions_to_integers_keep_to_the_ends() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 2.7, -2.7, 1e30], np.float32)
    source = "def cut(x, y, scratch):\n    if thread() < 6:\n        y[thread()] = int64(x[thread()])\n"
    job = Job(source, "cut", (F, I, SIZE), 32)
    y = launched(compile_with_numba(job, "sm_90"), 1, 32, x, np.zeros(6, np.int64), 0)[1]
    assert y.tolist() == [0, 2**63 - 1, -(2**63), 2, -2, 2**63 - 1]


def test_a_kernel_has_the_symbol_that_it_has_with_us_and_both_codes() -> None:
    compiled = compile_with_numba(WIDE, "sm_80")
    assert compiled.symbol == symbol_of(WIDE, "sm_80")
    assert f".visible .entry {compiled.symbol}(".encode() in compiled.ptx
    assert b".target sm_80" in compiled.ptx
    assert compiled.cubin.startswith(b"\x7fELF")


def test_a_kernel_takes_arrays_as_numba_s_users_pass_them() -> None:
    """Of an array numba.cuda passes seven words, of which the fifth is its address."""
    kernel = plain(WIDE.source, WIDE.entry, {**NAMES, "__builtins__": {"range": range}})
    array = types.float32[::1]
    signature = types.void(array, array, types.int64, types.int64)
    ptx, _ = cuda.compile(kernel, signature, cc=(9, 0), device=False, abi="numba")
    device, words, places = Interpreter(1 << 20), list[int](), list[int]()
    x = np.linspace(-2, 2, 640, dtype=np.float32)
    for data in (x, np.zeros_like(x)):
        places.append(device.allocate(data.nbytes))
        device.write(places[-1], data)
        words += [0, 0, data.size, data.itemsize, places[-1], data.size, data.itemsize]
    symbol = re.findall(r"\.visible \.entry ([\w$]+)\(", ptx)[0]
    device.launch(device.load(b"", ptx.encode(), symbol), 1, 256, [*words, 640, 0])
    y = np.empty_like(x)
    device.read(places[1], y)
    assert y == pytest.approx(np.exp(x) / 2)


def test_source_that_no_kernel_has_is_refused_with_the_source() -> None:
    job = Job("def k(x, scratch):\n    x[0] = open(x)\n", "k", (F, SIZE))
    with pytest.raises(CompileError, match=r"(?s)open.*# written as"):
        compile_with_numba(job, "sm_90")


def test_without_numba_cuda_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_cuda, "numba_cuda", None)
    with pytest.raises(ChainruleError, match=r"pip install 'chainrule\[cuda\]'"):
        compile_with_numba(WIDE, "sm_90")
