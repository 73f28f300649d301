"""What a kernel makes of a product's sums, in whatever team these are added: as the reference says."""

from __future__ import annotations

import pytest

from chainrule.codegen.cuda import mapping, product, tiles
from chainrule.codegen.cuda.device import TILES
from chainrule.codegen.cuda.emit import printed
from chainrule.codegen.cuda.objects import compile_kernels
from chainrule.codegen.cuda.team import Tiled
from chainrule.codegen.cuda.toolkit import figures
from chainrule.codegen.kernel import Element
from chainrule.compiler import derive
from chainrule.ir.graph import Graph
from chainrule.ir.machine import GPU
from chainrule.ir.program import Product, Program, leaves
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.source import Source
from tests.codegen.cuda.programs import run_on_gpu
from tests.codegen.running import drawn
from tests.codegen.test_cpu_laws import assert_agrees, wanted
from tests.cuda.ptx import PTXError

HEAD = "model m(inputs = 33, width = 70):\n    dim batch\n    input x[batch, inputs]\n    input r[batch, width]\n"
FIXED = HEAD.replace("    dim batch\n", "").replace("(", "(batch = 4096, ", 1).replace("70", "1024")
"""The mapping knows how many rows there are, and takes large tiles."""
BODIES = {
    "bias and relu": "h = relu(linear(x, width))",
    "residual, mask and scale": "z = linear(x, width)\nh[n, o] = if r[n, o] <= 0 then 0 else 2*z[n, o] + r[n, 69 - o]",
    "gelu by tanh": "h = gelu_tanh(linear(x, width))",
    "two results": "h = linear(x, width)\ny = tanh(h)",
    "a draw": "random u[n < batch, o < width] ~ uniform(0, 1)\nz = linear(x, width)\nh[n, o] = z[n, o] * u[n, o]",
    "heads": "param Q[inputs, 2, 35] ~ normal(1)\nz[n, k, e] = sum[i] x[n, i] * Q[i, k, e]\n"
    "h[n, k, e] = z[n, k, e] + r[n, 35*k + e]",
    "a batch": "z[k < 2, n, m] = sum[i < 16] x[n, 16*k + i] * x[m, 16*k + i]\n"
    "h[k, n, m] = exp(-z[k, n, m]) * r[n, 3*k]",
    "a convolution": "image[n, c < 3, i < 5, j < 2] = x[n, 10*c + 2*i + j]\n"
    "h = relu(conv2d(image, 4, kernel = 3, pad = 1))",
    "few places": "z[a < 8, o] = sum[n] r[n, a] * x[n, o]\nh[a, o] = tanh(z[a, o]) + a",
}
PLANNED = {"few places": 1 << 14}


def program_of(
    body: str, outputs: tuple[str, ...] = ("h",), batch: int = 4096, head: str = HEAD
) -> tuple[Graph, Program]:
    text = head + "".join(f"    {line}\n" for line in body.splitlines())
    graph = derive(Source(text, "m.graph", "m"), Options("predict", outputs)).graph
    return graph, schedule(graph, training=False, sizes={"batch": batch}, machine=GPU)


def law(body: str, batch: int, element: Element = "float32", planned: int = 4096) -> None:
    graph, program = program_of(body, ("h", "y") if "y =" in body else ("h",), planned)
    assert any(isinstance(leaf, Product) and not leaf.rows for k in program.kernels for leaf in leaves(k.body))
    values = drawn(graph, {"batch": batch})
    assert_agrees(run_on_gpu(program, {"batch": batch}, values, element), wanted(graph, values, program), element)


@pytest.mark.parametrize("case", BODIES)
def test_what_is_made_of_a_product_is_what_the_formulas_say(case):
    law(BODIES[case], 37, planned=PLANNED.get(case, 4096))


def test_sums_in_tiles_in_threads_and_in_blocks_are_covered():
    """What the cases above are: panels in shared memory, a sum for each thread, and one of a block together."""
    programs = {case: program_of(body, batch=PLANNED.get(case, 4096))[1] for case, body in BODIES.items()}
    texts = {case: "".join(s.text for s in printed(program, "float32")[1]) for case, program in programs.items()}
    assert "left_panel" in texts["bias and relu"] and "left_panel" in texts["a batch"]
    assert "block_sum" in texts["few places"] and "left_panel" not in texts["few places"]


@pytest.mark.parametrize("size", TILES)
def test_every_tile_ends_alike(size, monkeypatch):
    monkeypatch.setattr(tiles, "TILES", (size,))
    law(BODIES["residual, mask and scale"], 2 * size[0] + 3)


def test_much_to_do_is_done_by_tiles_of_few_places():
    """Each place of a thread has instructions of its own, and a draw is many."""

    def places(body: str) -> int:
        program = program_of(body, head=FIXED)[1]
        buffers = {b.name: b for k in program.kernels for b in (*program.buffers, *k.locals)}
        plans = [mapping.mapped(k, buffers) for k in program.kernels]
        return max(t.rows * t.columns for plan in plans for t in plan.body if isinstance(t, Tiled))

    assert places(BODIES["bias and relu"]) > places(BODIES["a draw"])


def test_sums_that_nothing_is_made_of_are_noticed(monkeypatch):
    monkeypatch.setattr(product, "write_statement", lambda statement, w: None)
    with pytest.raises((AssertionError, PTXError, ValueError)):
        law(BODIES["bias and relu"], 37)


def test_statements_beside_another_sum_are_noticed(monkeypatch):
    """A register that holds the sum of the first place for all of them."""
    monkeypatch.setattr(tiles, "TILES", ((32, 32),))
    law(BODIES["residual, mask and scale"], 37)
    end = product._end
    monkeypatch.setattr(product, "_end", lambda t, name, w: end(t, "sum_0_0", w))
    with pytest.raises((AssertionError, PTXError)):
        law(BODIES["residual, mask and scale"], 37)


@pytest.mark.parametrize("case", ["bias and relu", "gelu by tanh", "a draw", "two results"])
def test_what_ends_a_large_tile_stays_in_registers_and_in_float32(case):
    _, program = program_of(BODIES[case], ("h", "y") if "y =" in BODIES[case] else ("h",), head=FIXED)
    _, written = printed(program, "float32")
    (job,) = (s.job for s in written if "left_panel" in s.text)
    (compiled,) = compile_kernels([job], "sm_90")
    found = figures(compiled.cubin)
    assert (found.local, found.doubles) == (0, 0) and found.registers <= 168
