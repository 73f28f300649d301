"""Maps end the kernel of a product on a GPU where they are maps over its places, and where that pays."""

from __future__ import annotations

import pytest

from chainrule.compiler import derive
from chainrule.ir.machine import CPU, GPU
from chainrule.ir.program import Product, Program, accesses, leaves
from chainrule.ir.program_text import kernel_text
from chainrule.ir.validate_program import validate_program
from chainrule.options import Options
from chainrule.schedule import epilogue, schedule
from chainrule.source import Source


def scheduled(body: str, machine=GPU, outputs=("h",), inputs=64, **sizes: int) -> Program:
    """The program of a model of x[batch, inputs] and r[batch, 96]."""
    head = f"model m(width = 96):\n    dim batch\n    input x[batch, {inputs}]\n    input r[batch, width]\n"
    text = head + "".join(f"    {line}\n" for line in body.splitlines())
    graph = derive(Source(text, "m.graph", "m"), Options("predict", outputs)).graph
    program = schedule(graph, training=False, sizes={"batch": 256} | sizes, machine=machine)
    validate_program(program)
    return program


def kernels(program: Program) -> list[set[str]]:
    """What each kernel leaves in memory."""
    local = {b.name for k in program.kernels for b in k.locals}
    return [{accesses(leaf)[1].tensor for leaf in leaves(k.body)} - local for k in program.kernels]


def test_a_bias_and_a_relu_are_done_on_the_sum_which_is_no_tensor_in_memory():
    program = scheduled("h = relu(linear(x, width))")
    assert kernel_text(program.kernels[0]).splitlines()[1:] == [
        "    local h.linear.y_sum, h.linear",
        "    for blocks [b0, b1) of 2 in batch:",
        "        for b in [b0, b1):",
        "            for o < 96:",
        "                product h.linear.y_sum = x[b, i] * h.linear.W[i, o]  (inner i < 64)",
        "                h.linear = h.linear.y_sum + h.linear.b[o]",
        "                h[b, o] = if h.linear <= 0 then 0 else h.linear",
    ]
    assert len(program.kernels) == 1 and not any(b.name == "h.linear.y_sum" for b in program.buffers)


def test_what_others_read_too_is_stored_as_well():
    program = scheduled("z = linear(x, width)\nh = tanh(z)\ns[n] = mean[o] z[n, o]", outputs=("h", "s"))
    assert len(kernels(program)[0]) == 2


def test_any_affine_read_beside_the_product_s_own_place_will_do():
    program = scheduled("z = linear(x, width)\nh[n, o] = z[n, o] * r[n, o] + r[n, 95 - o]", outputs=("h",))
    assert len(program.kernels) == 1


REFUSED = {
    "another place of the product": "z = linear(x, width)\nh[n, o < 96] = z[n, o] + z[n, 95 - o]",
    "a part of its places": "z = linear(x, width)\nh[n, o < 95] = tanh(z[n, o])",
    "a reduction": "z = linear(x, width)\nh[n] = max[o] z[n, o]",
    "more places": "z = linear(x, width)\nh[n, o < 96, k < 2] = tanh(z[n, o]) + k",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_map_over_its_places_has_a_kernel_of_its_own(case):
    program = scheduled(REFUSED[case])
    (end,) = (k for k in program.kernels if any(isinstance(leaf, Product) for leaf in leaves(k.body)))
    assert {accesses(leaf)[1].tensor for leaf in leaves(end.body)}.isdisjoint({"h", "h.1"})


LARGE = {"batch": 1 << 16, "inputs": 4096}


def test_a_large_product_is_left_to_a_library_with_what_that_can_do():
    """relu and a bias are the library's, a tanh is not; where the product is small, a launch counts for more."""
    assert len(scheduled("h = relu(linear(x, width))", **LARGE).kernels) == 1
    assert len(scheduled("h = tanh(linear(x, width))", **LARGE).kernels) == 2
    assert len(scheduled("h = tanh(linear(x, width))").kernels) == 1


def test_an_activation_of_several_maps_is_seen_ahead():
    (kernel,) = scheduled("h = gelu_tanh(linear(x, width))", **LARGE).kernels
    assert len(kernel.formulas) == 4
    assert len(scheduled("h = gelu(linear(x, width))", **LARGE).kernels) == 2


def test_a_convolution_which_no_library_does_takes_what_follows():
    body = "image[n, c < 1, i < 8, j < 8] = x[n, 8*i + j]\nh = sin(conv2d(image, 8, kernel = 3, pad = 1))"
    program = scheduled(body, batch=1 << 16)
    assert [k.formulas for k in program.kernels][2:] == [
        ("h.conv2d.z", "h.conv2d"),
        ("h",),
    ]  # an output of another order


def test_a_cpu_s_programs_know_nothing_of_it(monkeypatch):
    monkeypatch.setattr(epilogue, "pays", None)
    program = scheduled("h = relu(linear(x, width))", CPU)
    assert all(leaf.rows for k in program.kernels for leaf in leaves(k.body) if isinstance(leaf, Product))
