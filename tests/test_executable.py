"""A compiled program for a GPU as plain data: what is wrong in one is found before it runs."""

from __future__ import annotations

import pytest
from msgspec import structs

from chainrule.executable import (
    FORMAT,
    ONE,
    Buffer,
    Dim,
    Executable,
    Kernel,
    Launch,
    Matrix,
    Multiply,
    Polynomial,
    decode,
    encode,
    faults,
)

BATCH: Polynomial = ((1, ("batch",)),)
WIDTH: Polynomial = ((64, ()),)

PRODUCT = Multiply(
    rows=BATCH, columns=WIDTH, inner=WIDTH,
    left=Matrix(0, (), WIDTH, ONE), right=Matrix(1, (), WIDTH, ONE), target=Matrix(2, (), WIDTH, ONE),
)  # fmt: skip
LAUNCH = Launch(
    kernel=0, name="z", buffers=(0, 1, 2), sizes=(BATCH,), extent=BATCH, scratch=(), cost=BATCH,
    reads=(0, 1), writes=(2,), threads=256, multiply=PRODUCT,
)  # fmt: skip
PROGRAM = Executable(
    name="product", format=FORMAT, target="cuda sm_90", element="float32", training=False,
    dims=(Dim("batch"),),
    buffers=tuple(Buffer(name, "float32", (BATCH, WIDTH), "arena") for name in "xWz"),
    inputs=(), params=(), states=(), scalars=(), outputs=(),
    kernels=(Kernel("z", "0" * 64, ptx="1" * 64),), launches=(LAUNCH,),
)  # fmt: skip


def changed(**changes: object) -> Executable:
    """The program with its launch changed."""
    return structs.replace(PROGRAM, launches=(structs.replace(LAUNCH, **changes),))


def multiplying(**changes: object) -> Executable:
    return changed(multiply=structs.replace(PRODUCT, **changes))


def test_a_program_for_a_gpu_goes_to_json_and_back():
    assert decode(encode(PROGRAM)) == PROGRAM and not faults(PROGRAM)
    assert PROGRAM.on_gpu and not structs.replace(PROGRAM, target="znver5 512 bits").on_gpu


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (changed(threads=0), "launch z has 0 threads a CTA, not 1 to 1024"),
        (changed(threads=2048), "launch z has 2048 threads"),
        (structs.replace(PROGRAM, kernels=(Kernel("z", "0" * 64),)), "kernel z has no PTX"),
        (multiplying(left=Matrix(3, (), WIDTH, ONE)), "launch z multiplies a left that it does not hold"),
        (multiplying(right=Matrix(1, (), WIDTH, WIDTH)), "launch z multiplies a right with gaps along both axes"),
        (multiplying(inner=((1, ("width",)),)), "no dim is named 'width'"),
        (multiplying(target=Matrix(2, ((1, ("gap",)),), WIDTH, ONE)), "no dim is named 'gap'"),
    ],
)
def test_what_is_wrong_in_a_launch_is_said(wrong: Executable, said: str):
    assert any(text.startswith(said) for text in faults(wrong)), faults(wrong)


def test_a_program_for_the_cpu_needs_neither_threads_nor_ptx():
    kernels = (Kernel("z", "0" * 64),)
    launches = (structs.replace(LAUNCH, threads=0, multiply=None),)
    assert not faults(structs.replace(PROGRAM, target="znver5", kernels=kernels, launches=launches))
