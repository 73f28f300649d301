"""What is asked of a model: a training step, gradients or a prediction, and how it is to be compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chainrule.source import Argument


@dataclass(frozen=True)
class Options:
    """mode: "train" (loss, gradients, updates), "gradient" (loss and gradients), or "predict" (eval, outputs alone).

    wrt: what gradients are taken with respect to (none: every parameter). arguments: the optimizer's.
    accurate: keep a function's argument where its derivative written in its value would lose bits, and compute no
    convolution by fewer multiplications, which loses some.
    checkpoints: keep a recurrence's state every so many steps, and compute those between again; 0: the root of how many
    there are; None: keep all of them. memory: bytes that may be kept between kernels (None: what is fastest), with dims
    of these `sizes`, for which the kernels are scheduled.
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

    @property
    def training(self) -> bool:
        return self.mode != "predict"

    @property
    def derives(self) -> bool:
        return self.mode != "predict"
