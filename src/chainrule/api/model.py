"""Models and steps: load or make a model, compile it, train it, ask it.

A model is its source; programs are compiled, or found in the cache, when something is asked of it. All programs of a
model share one store of parameters, states and run-time numbers, which is of one dtype: that of its last training
step. A program of the other dtype looks at a copy. Where the programs run, there the store lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import lazy_loader
import numpy as np
from numpy.typing import NDArray

from chainrule import build
from chainrule.api.place import DType, Place, Runner, place
from chainrule.api.tensor import Tensor, plain, recorded_source
from chainrule.errors import ChainruleError
from chainrule.executable import Precision
from chainrule.options import Options
from chainrule.runtime.cache import bytes_of
from chainrule.runtime.cuda.device import Device
from chainrule.runtime.cuda.present import Absent
from chainrule.runtime.step import Runner as CpuRunner
from chainrule.runtime.store import Store
from chainrule.source import Argument, Source, read_source

safetensors = lazy_loader.load("safetensors")
safetensors_numpy = lazy_loader.load("safetensors.numpy", suppress_warning=True)

Array: TypeAlias = NDArray[Any]

CHECKSUM = "sha256"  # of a saved file's numbers, in its metadata


@dataclass(eq=False)
class Model:
    """A network: what was written, and the parameters that its programs share.

    Made from symbolic tensors, ``Model(loss, logits=logits)``: the loss, and outputs by name; or by `load`. Without
    a loss it can predict, and not be trained. dtype: of its parameters (float32 until something else is asked for).
    place: where its programs run (the CPU until something else is asked for).
    """

    source: Source
    dtype: DType
    place: Place
    _stores: dict[tuple[DType, Device | None], Store]
    _runners: dict[tuple[Options, Device | None, int | None], Runner]
    _asked: dict[tuple[Any, ...], Runner]  # the same again for `predict`, by what it was called with

    def __init__(self, loss: Tensor | Source | None = None, /, *, name: str = "network", **outputs: Tensor) -> None:
        roots = outputs if loss is None or isinstance(loss, Source) else {"loss": loss, **outputs}
        self.source = loss if isinstance(loss, Source) else recorded_source(name, roots)
        self.dtype, self.place, self._stores, self._runners, self._asked = "float32", Place(), {}, {}, {}

    def compile(
        self,
        optimizer: str = "sgd",
        *,
        loss: str = "loss",
        outputs: Sequence[str] = (),
        dtype: DType = "float32",
        target: Literal["cpu", "cuda"] | None = None,
        arch: str | None = None,
        precision: Precision | None = None,
        threads: int | None = None,
        seed: int | None = None,
        accurate: bool = False,
        checkpoints: int | Literal["sqrt"] | None = None,
        memory: int | str | None = None,
        sizes: Mapping[str, int] | None = None,
        **arguments: Argument,
    ) -> Step:
        """A training step: forward, backward and update as one tape.

        optimizer: one of the library's (sgd, momentum, nesterov, adam, adamw), with its `arguments` (rate=0.01). Those
        that are run-time numbers may be changed later in `Step.scalars`. outputs: tensors that a step returns beside
        the loss. dtype: of the step, and of the model's parameters from now on. target, arch, precision: as in `to`
        (default: where the model is). seed: draw the parameters anew
        (default: keep them; 0 where there are none). accurate: spend time on the last bits, where derivatives and
        convolutions would otherwise give up some. checkpoints: of recurrences keep the state every so many steps
        only, "sqrt" of how many there are, and compute what the backward pass needs between them again. memory: bytes
        (or "64 MB") that a step may keep between its kernels when its dims have these `sizes`; within it more is
        computed again, and a batch that would need more is an error (default: what is fastest). `sizes` alone say what
        to make the step fast for.
        Raises SourceError where the model's text is wrong, ChainruleError where an argument is.
        """
        where = self._place(target, arch, precision)
        asked, given = _names(outputs), tuple(sorted((name, plain(value)) for name, value in arguments.items()))
        options = Options(
            "train", asked, loss, optimizer, given, (), _checked(dtype), accurate, _every(checkpoints),
            _budget(memory), tuple(sorted((sizes or {}).items())), where.target, where.precision,
        )  # fmt: skip
        where.check(options.dtype, threads)
        self._adopt(options.dtype, where)
        return Step(self, options, self._runner(options, threads, seed))

    def to(
        self, target: Literal["cpu", "cuda"], *, arch: str | None = None, precision: Precision | None = None
    ) -> Model:
        """This model, whose programs run there from now on; its parameters go along.

        arch: of the GPU, as in "sm_90" (default: the present one's, "sm_90" without one, where programs are compiled
        and not run). precision: what the products of float32 are rounded to, "float32", "tf32" or "bf16"; their sums,
        all else and the parameters stay float32.
        """
        self._adopt(self.dtype, place(target, arch, precision))
        return self

    def predict(
        self,
        /,
        *,
        outputs: Sequence[str] = (),
        dtype: DType | None = None,
        threads: int | None = None,
        out: Mapping[str, Any] | None = None,
        on_device: bool = False,
        **inputs: Any,
    ) -> dict[str, Any]:
        """The named outputs (default: those that the model declares) in eval mode, as copies.

        out: arrays that outputs are written to, by name, of the shapes and dtypes that these have. Only the inputs
        upstream of what is asked are needed; the model's others may be given, and are not looked at. On a GPU inputs
        and `out` may be arrays of other libraries that lie there; on_device: results stay there, as `DeviceArray`s.
        """
        names = _names(outputs)
        asked = self.dtype, dtype, threads, names
        runner = self._asked.get(asked)  # to make options and compare them takes longer than many a program runs
        if runner is None:
            runner = self._runner(self._options("predict", names, dtype=dtype), threads)
            if runner.executable.element == self.dtype:  # else the parameters are copied for each call
                self._asked[asked] = runner
        return runner.run(_needed(runner, inputs), out=out, **self._kept_there(on_device))

    def gradients(
        self,
        /,
        wrt: Sequence[str] = (),
        *,
        loss: str = "loss",
        dtype: DType | None = None,
        threads: int | None = None,
        on_device: bool = False,
        **inputs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """The loss, and its gradient with respect to each of `wrt` (parameters or inputs; default: all parameters).

        In training mode, yet nothing changes: no state, and not the count of steps, by which draws are made.
        on_device: as in `predict`.
        """
        runner = self._runner(self._options("gradient", (), loss, wrt, dtype), threads)
        found = runner.run(_needed(runner, inputs), **self._kept_there(on_device))
        return found[loss], {name: found[gradient] for name, gradient in runner.executable.gradients.items()}

    @property
    def params(self) -> MutableMapping[str, Array]:
        """Name → array of every parameter: reading copies, assigning writes."""
        return self.store().params

    def save(self, path: str | Path) -> None:
        """Write the parameters to `path` as safetensors, whole or not at all. Raises ChainruleError where it cannot."""
        path, params = Path(path), dict(self.params)
        data = safetensors_numpy.save(params, metadata={CHECKSUM: _checksum(params)})
        aside = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise ChainruleError(f"{path} cannot be written: {error.strerror}") from None

    def restore(self, path: str | Path) -> None:
        """Read the parameters from `path`: a file that `save` wrote, or any of safetensors with these names.

        Raises ChainruleError where it cannot be read, is not as `save` wrote it, or names or shapes differ; the
        parameters then stay as they are.
        """
        found, params = _read_params(Path(path)), self.params
        if params.keys() != found.keys():
            missing, foreign = sorted(params.keys() - found.keys()), sorted(found.keys() - params.keys())
            raise ChainruleError(
                f"{path} holds the parameters of another model"
                f"\n  missing: {', '.join(missing) or 'none'}\n  unknown: {', '.join(foreign) or 'none'}"
                "\n  Way out: load the model with the arguments that it was saved with"
            )
        before = dict(params)
        try:
            params.update(found)
        except ChainruleError:  # a shape differs: all or nothing
            params.update(before)
            raise

    def store(self, dtype: DType | None = None) -> Store:
        """What this model's programs share; made with seed 0 where nothing was compiled yet. dtype: from now on."""
        self._adopt(_checked(dtype or self.dtype), self.place)
        if self._home not in self._stores:
            self._runner(self._options("predict"), None)
        return self._stores[self._home]

    @property
    def _home(self) -> tuple[DType, Device | None]:
        """Of the store that the model's values are in."""
        return self.dtype, self.place.device

    def _place(self, target: str | None, arch: str | None, precision: str | None) -> Place:
        """Where a program is to run; what is not said is the model's."""
        if (target, arch, precision) == (None, None, None):
            return self.place
        return place(target or ("cuda" if self.place.on_gpu else "cpu"), arch, precision)

    def _options(
        self,
        mode: Literal["gradient", "predict"],
        outputs: Sequence[str] = (),
        loss: str = "loss",
        wrt: Sequence[str] = (),
        dtype: DType | None = None,
    ) -> Options:
        return Options(
            mode, _names(outputs), loss, wrt=_names(wrt), dtype=_checked(dtype or self.dtype),
            target=self.place.target, precision=self.place.precision,
        )  # fmt: skip

    def _kept_there(self, on_device: bool) -> dict[str, Any]:
        """What a runner is told of where its results stay."""
        if on_device and not self.place.on_gpu:
            raise ChainruleError("on_device=True, and the program runs on the CPU\n  Way out: model.to('cuda')")
        return {"on_device": True} if on_device else {}

    def _adopt(self, dtype: DType, where: Place) -> None:
        """Let `dtype` be the model's, and its place there; its values go along."""
        where.check(dtype, None)
        before = self._home
        if where != self.place:
            self._asked = {}
        self.dtype, self.place = dtype, where
        if before in self._stores and self._home != before:
            self._runner(self._options("predict"), None)
            _copy(self._stores[before], self._stores[self._home])

    def _runner(self, options: Options, threads: int | None, seed: int | None = None) -> Runner:
        where = self.place
        where.check(options.dtype, threads)
        known = self._runners.get((options, where.device, threads))
        if known is None:
            made = build.executable(self.source, options)
            store = self._stores.get((options.dtype, where.device)) or where.store(seed or 0)
            known = where.runner(made, store, threads)
            # only now: a program that does not load leaves nothing behind
            self._stores[options.dtype, where.device] = store
            self._runners[options, where.device, threads] = known
        if seed is not None:
            known.store.restart(seed)
        elif options.dtype != self.dtype and self._home in self._stores:
            _copy(self._stores[self._home], known.store)
        return known

    def _repr_html_(self) -> str:
        """The forward pass as SVG; where it cannot be drawn, why."""
        return build.html(self.source, Options("predict"), "forward")

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self.source.arguments)
        return f"Model({self.source.file}{arguments})"


@dataclass(eq=False)
class Step:
    """One training step as a function: ``loss = step(x=x, label=label)``."""

    model: Model
    options: Options
    runner: Runner
    loss: str = field(init=False)
    outputs: tuple[str, ...] = field(init=False)
    unread: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.loss, self.outputs = self.options.loss, self.options.outputs
        self.unread = self.runner.executable.unread

    def __call__(self, /, **batch: Any) -> Any:
        """Forward, backward and update; the loss before it, or (loss, outputs…) where outputs were asked for."""
        runner = self.runner
        if self.unread:  # an input that the loss does not depend on
            batch = dict(_needed(runner, batch))
        found = runner.again(batch) or runner.run(batch)
        return found[self.loss] if not self.outputs else (found[self.loss], *(found[o] for o in self.outputs))

    def run(self, steps: int, scalars: Mapping[str, Sequence[float]] | None = None, /, **batches: Any) -> Any:
        """`steps` steps in one call; each input may have one more leading axis, a slice a step. Returns all losses.

        scalars: run-time numbers, such as the learning rate, by name, a value for each step; the last ones stay.
        """
        found = self.runner.run(_needed(self.runner, batches), steps, scalars=scalars or {})
        return found[self.loss] if not self.outputs else (found[self.loss], *(found[o] for o in self.outputs))

    def nearer(self, arrays: Mapping[str, Array]) -> Mapping[str, Any]:
        """Arrays of samples for steps to come, on the GPU where the step runs on one, as far as there is room."""
        return arrays if isinstance(self.runner, CpuRunner | Absent) else self.runner.nearer(arrays)

    def predict(self, /, *, outputs: Sequence[str] = (), **inputs: Any) -> dict[str, Any]:
        """The model's outputs in eval mode, under these parameters."""
        dtype = self.runner.executable.element
        return self.model.predict(outputs=outputs, dtype=dtype, threads=self.runner.threads, **inputs)

    @property
    def params(self) -> MutableMapping[str, Array]:
        """Name → array: reading copies, assigning writes."""
        return self.runner.store.params

    @property
    def states(self) -> MutableMapping[str, Array]:
        """Name → array of the model's and the optimizer's states."""
        return self.runner.store.states

    @property
    def scalars(self) -> MutableMapping[str, float]:
        """Name → run-time number, such as the learning rate: changing it recompiles nothing."""
        return self.runner.store.scalars

    @property
    def steps(self) -> int:
        """How many steps have been done; optimizers and random draws count by it."""
        return self.runner.store.step

    @steps.setter
    def steps(self, value: int) -> None:
        self.runner.store.step = value

    def _repr_html_(self) -> str:
        """Both passes, side by side, as SVG; where they cannot be drawn, why."""
        return build.html(self.model.source, self.options, "both")

    def __repr__(self) -> str:
        inputs = ", ".join(item.name for item in self.runner.executable.inputs)
        outputs = ", ".join((self.loss, *self.outputs))
        return f"Step({self.model!r}, {self.options.optimizer}, {self.options.dtype}: {inputs} -> {outputs})"


def load(path: str | Path, **arguments: Argument) -> Model:
    """The model in a file (``mlp.graph``, or ``nets.graph:mlp``) with its `arguments` (hidden=256).

    Raises ChainruleError where the file cannot be read; its text is checked when something is asked of the model.
    """
    return Model(read_source(str(path), {name: plain(value) for name, value in arguments.items()}))


def value_and_grad(
    model: Model, wrt: Sequence[str] = (), *, loss: str = "loss", dtype: DType | None = None
) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """A plain function ``f(params=None, **inputs) -> (loss, {name: gradient})``.

    params: a name → array mapping (None: the model's, as they are now; some: the others as they are now). The model's
    own are left alone, and the same call gives the same result: draws are those of the model's last step.
    wrt: parameters or inputs; default: every parameter.
    """
    private = Model(model.source)

    def evaluate(params: Mapping[str, Any] | None = None, **inputs: Any) -> tuple[Any, dict[str, Array]]:
        private._adopt(private.dtype, model.place)
        here = private.store(dtype or model.dtype)
        _copy(model.store(), here)
        here.params.update(params or {})
        return private.gradients(wrt, loss=loss, **inputs)

    return evaluate


def grad(
    model: Model, wrt: Sequence[str] = (), *, loss: str = "loss", dtype: DType | None = None
) -> Callable[..., dict[str, Array]]:
    """A plain function ``f(params=None, **inputs) -> {name: gradient}``, as `value_and_grad` without the value."""
    both = value_and_grad(model, wrt, loss=loss, dtype=dtype)

    def evaluate(params: Mapping[str, Any] | None = None, **inputs: Any) -> dict[str, Array]:
        return both(params, **inputs)[1]

    return evaluate


def _copy(source: Store, target: Store) -> None:
    """Parameters, states, seed and step; both stores are of one model, and may differ in dtype."""
    target.params.update(source.params)
    target.states.update({name: value for name, value in source.states.items() if name in target.states.arrays})
    target.clock[:] = source.clock


def _checksum(params: Mapping[str, Array]) -> str:
    """The SHA-256 of names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name, array in sorted(params.items()):
        found.update(repr((name, array.dtype.str, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _read_params(path: Path) -> dict[str, Array]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            names, told = file.keys(), file.metadata() or {}
            found = {name: file.get_tensor(name) for name in names}
    except (OSError, safetensors.SafetensorError, ValueError, TypeError) as error:
        raise ChainruleError(
            f"{path} cannot be read as safetensors: {error}\n  Way out: a file that Model.save has written"
        ) from None
    if told.get(CHECKSUM, "") not in ("", _checksum(found)):
        raise ChainruleError(f"{path} is damaged: its numbers are not those that were saved\n  Way out: save it anew")
    return found


def _needed(runner: Runner, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """`inputs` without those of the model that the program does not read."""
    unread = runner.executable.unread
    return {name: value for name, value in inputs.items() if name not in unread} if unread else inputs


def _names(names: Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _every(checkpoints: object) -> int | None:
    """How many steps apart checkpoints are, as Options have it."""
    if checkpoints is None or checkpoints == "sqrt":
        return None if checkpoints is None else 0
    if isinstance(checkpoints, int) and checkpoints >= 1:
        return int(checkpoints)
    problem = f"checkpoints are {checkpoints!r} steps apart"
    raise ChainruleError(f"{problem}\n  Way out: a number of steps, 1 or more; 'sqrt'; or None: keep all states")


def _budget(memory: int | str | None) -> int | None:
    """Bytes."""
    if memory is None or isinstance(memory, int):
        return memory
    return bytes_of("memory", memory)


def _checked(dtype: Any) -> DType:
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in ("float32", "float64"):
        raise ChainruleError(f"a program's float is no {name}\n  Way out: dtype='float32' or 'float64'")
    return "float32" if name == "float32" else "float64"
