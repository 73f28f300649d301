"""Models and steps: load or make a model, compile it, train it, ask it.

A model is its source; programs are compiled, or found in the cache, when something is asked of it. All programs of a
model in one dtype share one store of parameters, states and run-time numbers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from chainrule import build
from chainrule.api.tensor import Tensor, every_dim, name_all, recorded
from chainrule.errors import ChainruleError, Span
from chainrule.options import Options
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
from chainrule.source import Argument, Source, read_source

DType: TypeAlias = Literal["float32", "float64"]
Array: TypeAlias = NDArray[Any]


@dataclass(eq=False)
class Model:
    """A network: what was written, and the parameters that its programs share.

    Made from symbolic tensors, ``Model(loss, logits=logits)``: the loss, and outputs by name; or by `load`.
    """

    source: Source
    _stores: dict[str, Store] = field(default_factory=dict)
    _runners: dict[tuple[Options, int | None], Runner] = field(default_factory=dict)

    def __init__(self, loss: Tensor | Source, /, *, name: str = "network", **outputs: Tensor) -> None:
        self.source = loss if isinstance(loss, Source) else _recorded_source(name, {"loss": loss, **outputs})
        self._stores, self._runners = {}, {}

    def compile(
        self,
        optimizer: str = "sgd",
        *,
        loss: str = "loss",
        outputs: Sequence[str] = (),
        dtype: DType = "float32",
        target: str = "cpu",
        threads: int | None = None,
        seed: int | None = None,
        accurate: bool = False,
        **arguments: Argument,
    ) -> Step:
        """A training step: forward, backward and update as one tape.

        optimizer: one of the library's (sgd, momentum, nesterov, adam, adamw), with its `arguments` (rate=0.01). Those
        that are run-time numbers may be changed later in `Step.scalars`. outputs: tensors that a step returns beside
        the loss. seed: draw the parameters anew (default: keep them; 0 where there are none).
        Raises SourceError where the model's text is wrong, ChainruleError where an argument is.
        """
        if target != "cpu":
            raise ChainruleError(f"there is no target {target!r}\n  Way out: target='cpu'")
        asked, given = _names(outputs), tuple(sorted(arguments.items()))
        options = Options("train", asked, loss, optimizer, given, (), _checked(dtype), accurate)
        return Step(self, self._runner(options, threads, seed), loss, asked)

    def predict(
        self, *, outputs: Sequence[str] = (), dtype: DType = "float32", threads: int | None = None, **inputs: Any
    ) -> dict[str, Array]:
        """The named outputs (default: those that the model declares) in eval mode, as copies.

        Only the inputs upstream of what is asked are needed; the model's others may be given, and are not looked at.
        """
        runner = self._runner(Options("predict", _names(outputs), dtype=_checked(dtype)), threads)
        return runner.run(_needed(runner, inputs))

    def gradients(
        self,
        wrt: Sequence[str] = (),
        *,
        loss: str = "loss",
        dtype: DType = "float32",
        threads: int | None = None,
        **inputs: Any,
    ) -> tuple[Any, dict[str, Array]]:
        """The loss, and its gradient with respect to each of `wrt` (parameters or inputs; default: all parameters)."""
        runner = self._runner(Options("gradient", (), loss, wrt=_names(wrt), dtype=_checked(dtype)), threads)
        found = runner.run(_needed(runner, inputs))
        return found[loss], {name: found[gradient] for name, gradient in runner.executable.gradients.items()}

    @property
    def params(self) -> MutableMapping[str, Array]:
        """Name → array of every parameter (float32): reading copies, assigning writes."""
        return self.store("float32").params

    def save(self, path: str | Path, dtype: DType = "float32") -> None:
        """Write the parameters to `path` as safetensors, whole or not at all. Raises ChainruleError where it cannot."""
        path, params = Path(path), self.store(dtype).params
        data = save({name: params[name] for name in params})
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

    def restore(self, path: str | Path, dtype: DType = "float32") -> None:
        """Read the parameters from `path`.

        Raises ChainruleError where it cannot be read, or names or shapes differ; the parameters then stay as they are.
        """
        try:
            found = load_file(str(path))
        except (OSError, SafetensorError, ValueError) as error:
            raise ChainruleError(
                f"{path} cannot be read as safetensors: {error}\n  Way out: a file that Model.save has written"
            ) from None
        params = self.store(dtype).params
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

    def store(self, dtype: DType) -> Store:
        """What this model's programs in `dtype` share; made with seed 0 where nothing was compiled yet."""
        if dtype not in self._stores:
            self._runner(Options("predict", dtype=dtype), None)
        return self._stores[dtype]

    def _runner(self, options: Options, threads: int | None, seed: int | None = None) -> Runner:
        known = self._runners.get((options, threads))
        if known is None:
            made = build.executable(self.source, options)
            store = self._stores.get(options.dtype) or Store(seed or 0)
            known = Runner(made.executable, made.objects, store, build.walker(), threads)
            self._stores[options.dtype] = store  # only now: a program that does not load leaves nothing behind
            self._runners[options, threads] = known
        if seed is not None:
            known.store.restart(seed)
        return known

    def _repr_html_(self) -> str:
        """The forward pass as SVG; where it cannot be drawn, why."""
        try:
            drawn = build.picture(self.source, Options("predict"), "forward").decode()
        except ChainruleError as error:
            return f"<pre>{escape(str(error))}</pre>"
        return drawn[drawn.index("<svg") :]  # without the XML declaration, which HTML does not have

    def __repr__(self) -> str:
        return f"Model({self.source.file})"


@dataclass(eq=False)
class Step:
    """One training step as a function: ``loss = step(x=x, label=label)``."""

    model: Model
    runner: Runner
    loss: str
    outputs: tuple[str, ...]

    def __call__(self, **batch: Any) -> Any:
        """Forward, backward and update; the loss before it, or (loss, outputs…) where outputs were asked for."""
        runner = self.runner
        found = runner.again(batch) or runner.run(batch)
        return found[self.loss] if not self.outputs else (found[self.loss], *(found[o] for o in self.outputs))

    def run(self, steps: int, **batches: Any) -> Any:
        """`steps` steps in one call; each input may have one more leading axis, a slice a step. Returns all losses."""
        found = self.runner.run(batches, steps)
        return found[self.loss] if not self.outputs else (found[self.loss], *(found[o] for o in self.outputs))

    def predict(self, *, outputs: Sequence[str] = (), **inputs: Any) -> dict[str, Array]:
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


def load(path: str | Path, **arguments: Argument) -> Model:
    """The model in a file (``mlp.graph``, or ``nets.graph:mlp``) with its `arguments` (hidden=256).

    Raises ChainruleError where the file cannot be read; its text is checked when something is asked of the model.
    """
    return Model(read_source(str(path), arguments))


def value_and_grad(
    model: Model, wrt: Sequence[str] = (), *, loss: str = "loss", dtype: DType = "float32"
) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """A plain function ``f(params=None, **inputs) -> (loss, {name: gradient})``.

    params: a name → array mapping (None: the model's, as they are now); the model's own are left alone.
    wrt: parameters or inputs; default: every parameter.
    """
    private = Model(model.source)

    def evaluate(params: Mapping[str, Any] | None = None, **inputs: Any) -> tuple[Any, dict[str, Array]]:
        private.store(dtype).params.update(model.store(dtype).params if params is None else params)
        return private.gradients(wrt, loss=loss, dtype=dtype, **inputs)

    return evaluate


def grad(
    model: Model, wrt: Sequence[str] = (), *, loss: str = "loss", dtype: DType = "float32"
) -> Callable[..., dict[str, Array]]:
    """A plain function ``f(params, **inputs) -> {name: gradient}``, as `value_and_grad` without the value."""
    both = value_and_grad(model, wrt, loss=loss, dtype=dtype)

    def evaluate(params: Mapping[str, Any] | None = None, **inputs: Any) -> dict[str, Array]:
        return both(params, **inputs)[1]

    return evaluate


def _needed(runner: Runner, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """`inputs` without those of the model that the program does not read."""
    unread = runner.executable.unread
    return {name: value for name, value in inputs.items() if name not in unread} if unread else inputs


def _names(names: Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _checked(dtype: Any) -> DType:
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in ("float32", "float64"):
        raise ChainruleError(f"a program's float is no {name}\n  Way out: dtype='float32' or 'float64'")
    return "float32" if name == "float32" else "float64"


def _recorded_source(name: str, roots: Mapping[str, Tensor]) -> Source:
    """The text of a model made of recorded statements, one a line, with the caller's place of each."""
    for root, tensor in roots.items():
        if not isinstance(tensor, Tensor):
            way_out = "make it of inputs and params: cr.mean(…)"  # type: ignore[unreachable]
            raise ChainruleError(f"{root} of the model is {tensor!r}, no symbolic tensor\n  Way out: {way_out}")
    tensors = recorded(tuple(roots.values()))
    names = name_all(tensors)
    for root, tensor in roots.items():  # the loss is called loss, whatever made it
        if not tensor.given and root not in names.values():
            names[tensor.order] = root
    first = tensors[0].place
    lines: list[tuple[str, Span]] = [(f"model {name}:", first)]
    lines += [(f"    dim {dim.declaration}", dim.place) for dim in every_dim(tensors).values()]
    lines += [(f"    {tensor.statement(names)}", tensor.place) for tensor in tensors]
    lines += [
        (f"    {root} = {names[tensor.order]}", tensor.place)
        for root, tensor in roots.items()
        if names[tensor.order] != root
    ]
    lines.append((f"    output {', '.join(roots)}", first))
    text = "".join(f"{line}\n" for line, _ in lines)
    return Source(text, f"<{name}>", name, places=tuple(place for _, place in lines))
