"""Matrices that are never kept: attention is one kernel forward and two backward, and computes what it did."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda import teams
from chainrule.codegen.cuda.emit import printed
from chainrule.codegen.cuda.objects import compile_kernel
from chainrule.codegen.cuda.toolkit import figures
from chainrule.compiler import derive
from chainrule.ir.machine import GPU
from chainrule.ir.program import Program
from chainrule.optimize import eliminate
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.schedule import overlay, schedule
from chainrule.source import Source, read_source
from tests.codegen.cuda.programs import ARCH, run_on_gpu
from tests.cuda.ptx import PTXError

QKV = ("q", "k", "v")
CALLS = {
    "causal": "attention(q, k, v)",
    "full": "attention(q, k, v, causal = false)",
    "mask": "attention_mask(q, k, v, keep)",
    "causal mask": "attention_mask(q, k, v, keep, causal = true)",
    "bias": "attention_bias(q, k, v, bias)",
}
MORE = {"mask": ("keep[n, time]",), "causal mask": ("keep[n, time]",), "bias": ("bias[n, 2, time, time]",)}


def source(call: str, most: int = 32, width: int = 8) -> Source:
    inputs = (*(f"{name}[n, 2, time, {width}]" for name in QKV), *MORE.get(call, ()), f"target[n, 2, time, {width}]")
    lines = ["dim n", f"dim 1 <= time <= {most}", *(f"input {i}" for i in inputs)]
    lines += [f"y = {CALLS[call]}", "loss = mean((y - target) * (y - target))"]
    return Source("".join(("model m():\n", *(f"    {line}\n" for line in lines))), "attention.graph")


@cache
def made(call: str, mode: str = "gradient", n: int = 64, **more: int) -> tuple[object, Program]:
    wrt = QKV if mode == "gradient" else ()
    compiled = derive(source(call, **more), Options(mode, ("y",), wrt=wrt, target=f"cuda:{ARCH}"))
    machine = replace(GPU, serial_ns=0.0, tiny_ns=0.0)
    return compiled, schedule(compiled.graph, training=False, sizes={"n": n}, machine=machine)


def drawn(call: str, n: int, time: int, width: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 * n + time)
    values = {name: rng.normal(size=(n, 2, time, width)) for name in (*QKV, "target")}
    if "mask" in call:
        values["keep"] = (rng.uniform(size=(n, time)) < 0.7).astype(float)
    if call == "bias":
        values["bias"] = rng.normal(size=(n, 2, time, time))
    return {name: value.astype(np.float32).astype(np.float64) for name, value in values.items()}


BOUNDS = {"float32": 2e-5, "tf32": 4e-3, "bf16": 3e-2}


def assert_agrees(call: str, n: int, time: int, element: str, precision: str = "float32") -> None:
    width = 8 if precision == "float32" else 16  # a tile is worth while for so many terms
    compiled, program = made(call, n=8 * width, width=width, most=4 * width)
    values = drawn(call, n, time, width)
    wanted = evaluate(eliminate(compiled.derived), values, seed=0, step=0)
    given = {name: value.astype(element) for name, value in values.items()}
    found, buffers = (
        run_on_gpu(program, {"n": n, "time": time}, given, element, precision=precision),
        dict(program.outputs),
    )
    bound = 1e-12 if element == "float64" else BOUNDS[precision]
    for tensor in ("y", "loss", *(compiled.gradients[name] for name in QKV)):
        scale = max(np.abs(wanted[tensor]).max(initial=0), 1e-3)
        np.testing.assert_allclose(found[buffers[tensor]], wanted[tensor], rtol=0, atol=bound * scale, err_msg=tensor)


@pytest.mark.parametrize("call", CALLS)
def test_attention_is_one_kernel_forward_and_two_backward(call):
    _, program = made(call)
    sums = [
        kernel for kernel in program.kernels if kernel.block is not None and "y.softmax" in "".join(kernel.formulas)
    ]
    assert [kernel.formulas[-1].split(".")[-1] for kernel in sums] == ["y", "q_bar", "v_bar"]


@pytest.mark.parametrize("call", CALLS)
def test_no_scores_are_kept(call):
    _, program = made(call)
    square = [b.name for b in program.buffers if [str(e) for e in b.shape].count("time") == 2]
    assert square == (["bias"] if call == "bias" else [])


@pytest.mark.parametrize("element", ["float32", "float64"])
@pytest.mark.parametrize("call", CALLS)
def test_attention_and_its_gradients_agree_with_the_equations(call, element):
    for n, time in ((1, 1), (2, 5), (1, 17), (3, 32)):
        assert_agrees(call, n, time, element)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_factors_of_a_band_s_products_may_be_rounded(precision):
    assert_agrees("causal", 1, 50, "float32", precision)
    _, written = printed(made("causal", n=128, width=16, most=64)[1], "float32", precision)
    assert any(f"mma_{precision}" in source.text and "softmax" in source.text for source in written)


@pytest.mark.parametrize("mode", ["predict", "gradient"])
def test_a_band_lies_in_shared_memory_and_nothing_is_spilled(mode):
    program, written = printed(made("causal", mode, most=128, width=32)[1], "float32")
    bands = [s for k, s in zip(program.kernels, written, strict=True) if k.block is not None and len(k.formulas) > 5]
    assert len(bands) == (1 if mode == "predict" else 3)
    for source in bands:
        found = figures(compile_kernel(source.job, ARCH).cubin)
        assert source.region == 0 and 16 << 10 < found.shared <= 48 << 10
        assert (found.local, found.doubles) == (0, 0) and found.registers <= 128


def test_what_does_not_fit_is_kept():
    for most in (None, 4096):
        text = source("full", most=most or 1).text
        text = text if most else text.replace("dim 1 <= time <= 1", "dim time")
        compiled = derive(Source(text, "attention.graph"), Options("predict", ("y",), target=f"cuda:{ARCH}"))
        program = schedule(compiled.graph, training=False, sizes={"n": 64, "time": 512}, machine=GPU)
        assert any([str(e) for e in b.shape].count("time") == 2 for b in program.buffers)


@pytest.mark.parametrize(("model", "places"), [("gpt", "time"), ("vit", "64")])
def test_the_text_of_a_transformer_s_training_step_keeps_no_scores(model, places):
    source = read_source(f"graphs/{model}.graph", {"depth": 1} | ({"patch": 1} if model == "vit" else {}))
    compiled = derive(source, Options("train", optimizer="adam", target=f"cuda:{ARCH}"))
    program = schedule(compiled.graph, training=True, machine=GPU)
    scores = [b.name for b in program.buffers if [str(e) for e in b.shape[2:]] == [places, places]]
    assert scores == [] and any("softmax" in b.name for b in program.buffers)


def test_a_missing_barrier_around_a_band_s_products_is_noticed(monkeypatch):
    made.cache_clear()
    monkeypatch.setattr(teams.Since, "barrier", lambda self, w: self.clear())
    with pytest.raises(PTXError, match="race|barrier"):
        assert_agrees("full", 2, 32, "float32")
    made.cache_clear()


def test_an_array_that_another_takes_too_early_is_noticed(monkeypatch):
    made.cache_clear()
    monkeypatch.setattr(overlay, "is_last_read", lambda body, old, new: True)
    with pytest.raises((AssertionError, PTXError)):
        assert_agrees("full", 2, 32, "float32")
    made.cache_clear()
