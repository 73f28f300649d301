"""What is asked of a model: a training step, gradients or a prediction, and how it is to be compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chainrule.executable import Precision
from chainrule.source import Argument


@dataclass(frozen=True)
class Options:
    """mode: "train" (loss, gradients, updates), "gradient" (loss and gradients), or "predict" (eval, outputs alone).

    wrt: what gradients are taken with respect to (none: every parameter). arguments: the optimizer's.
    accurate: keep a function's argument where its derivative written in its value would lose bits, and compute no
    convolution by fewer multiplications, which loses some.
    checkpoints: keep a recurrence's state every so many steps, and compute those between again; 0: the root of how many
    there are; None: keep all of them. memory: bytes that may be kept between kernels (None: what is fastest), with dims
    of these `sizes`, for which the kernels are scheduled. target: "cpu", or "cuda:" and an architecture, as in
    "cuda:sm_90". precision: what the products of a GPU may be rounded to: float32, or tf32 or bf16 with sums and
    parameters in float32.
    """

    mode: Literal["train", "gradient", "predict"]
    outputs: tuple[str, ...] = ()
    loss: str = "loss"
    optimizer: str | None = None
    arguments: tuple[tuple[str, Argument], ...] = ()
    wrt: tuple[str, ...] = ()
    dtype: Literal["float32", "float64"] = "float32"
    accurate: bool = False
    checkpoints: int | None = None
    memory: int | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    target: str = "cpu"
    precision: Precision = "float32"

    @property
    def arch(self) -> str | None:
        """Of the GPU; None: the program is the CPU's."""
        return self.target.removeprefix("cuda:") if self.target != "cpu" else None

    @property
    def training(self) -> bool:
        return self.mode != "predict"

    @property
    def derives(self) -> bool:
        return self.mode != "predict"
