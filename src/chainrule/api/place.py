"""Where a model's programs run: on the CPU, or on a GPU, whose products may be rounded to a stated precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import lazy_loader

from chainrule import build
from chainrule.errors import ChainruleError
from chainrule.executable import Precision
from chainrule.runtime import step as cpu
from chainrule.runtime.cache import Compiled
from chainrule.runtime.cuda import present
from chainrule.runtime.cuda.device import Device, DeviceError
from chainrule.runtime.store import Store

if TYPE_CHECKING:
    from chainrule.runtime.cuda import arrays, step
else:
    arrays = lazy_loader.load("chainrule.runtime.cuda.arrays", suppress_warning=True)
    step = lazy_loader.load("chainrule.runtime.cuda.step", suppress_warning=True)

DType: TypeAlias = Literal["float32", "float64"]


@dataclass(frozen=True)
class Place:
    """target, precision: as `Options` have them. device: the GPU; None: the CPU, or a GPU that is not here."""

    target: str = "cpu"
    precision: Precision = "float32"
    device: Device | None = None

    @property
    def on_gpu(self) -> bool:
        return self.target != "cpu"

    def store(self, seed: int) -> Store:
        """What the programs that run here share; without a GPU it lies on the host."""
        return Store(seed) if self.device is None else arrays.store_on(self.device, seed)

    def runner(self, made: Compiled, store: Store, threads: int | None) -> Runner:
        """A program that runs here; where its GPU is missing, one that says so when it is run."""
        if not self.on_gpu:
            return cpu.Runner(made.executable, made.objects, store, build.walker(), threads)
        if self.device is None:
            return present.Absent(made.executable, store)
        return step.Runner(made.executable, made.objects, store, self.device)

    def check(self, dtype: DType, threads: int | None) -> None:
        """Raises ChainruleError for what does not go together."""
        if self.on_gpu and threads is not None:
            raise ChainruleError(f"threads={threads} are the CPU's, and the target is a GPU\n  Way out: leave them out")
        if dtype == "float64" and self.precision != "float32":
            problem = f"precision={self.precision!r} rounds what float64 keeps"
            raise ChainruleError(f"{problem}\n  Way out: dtype='float32', or leave the precision out")


CPU = Place()

Runner: TypeAlias = "cpu.Runner | step.Runner | present.Absent"


def place(target: str, arch: str | None = None, precision: str | None = None) -> Place:
    """What is asked for, on the device that is in use now. Raises ChainruleError where there is no such place."""
    name = build.target_of(target, arch)
    chosen = {known: known for known in get_args(Precision)}.get(precision or "float32")
    if chosen is None:
        problem = f"products cannot be rounded to {precision!r}"
        raise ChainruleError(f"{problem}\n  Way out: precision='float32', 'tf32' or 'bf16'")
    if name == "cpu":
        if chosen != "float32":
            problem = f"precision={chosen!r} is a GPU's, and the target is the CPU"
            raise ChainruleError(f"{problem}\n  Way out: target='cuda', or leave the precision out")
        return Place()
    try:
        return Place(name, chosen, present.device())
    except DeviceError:  # whoever runs the program is told
        return Place(name, chosen)
