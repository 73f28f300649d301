"""Our parameters, states and draws as a twin in PyTorch takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from chainrule.ir.primitive import hash_of
from chainrule.philox import uniforms
from tests.references import twins

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pair:
    """A tensor of the twin's state, what it is called in our model, and its value from ours."""

    theirs: str
    ours: str
    of: Callable[[Array], Array] = np.asarray


def linear(theirs: str, ours: str, bias: bool = True) -> Iterator[Pair]:
    yield Pair(f"{theirs}.weight", f"{ours}.W", np.transpose)
    if bias:
        yield Pair(f"{theirs}.bias", f"{ours}.b")


def conv(theirs: str, ours: str, bias: bool = True) -> Iterator[Pair]:
    yield Pair(f"{theirs}.weight", f"{ours}.K")
    if bias:
        yield Pair(f"{theirs}.bias", f"{ours}.b")


def norm(theirs: str, ours: str, running: bool = False) -> Iterator[Pair]:
    yield Pair(f"{theirs}.weight", f"{ours}.gain")
    yield Pair(f"{theirs}.bias", f"{ours}.bias")
    if running:
        yield Pair(f"{theirs}.running_mean", f"{ours}.running_mean")
        yield Pair(f"{theirs}.running_var", f"{ours}.running_var")


def lstm(theirs: str, ours: str) -> Iterator[Pair]:
    """Gates lie side by side there, in the same order; of the two biases there, `twin` keeps one at 0."""
    yield Pair(f"{theirs}.weight_ih_l0", f"{ours}.W", lambda w: w.reshape(len(w), -1).T)
    yield Pair(f"{theirs}.weight_hh_l0", f"{ours}.U", lambda u: u.reshape(len(u), -1).T)
    yield Pair(f"{theirs}.bias_ih_l0", f"{ours}.b", np.ravel)


def lenet(module: nn.Module) -> Iterator[Pair]:
    for k, name in ((0, "y.conv2d"), (2, "y.conv2d_2"), (5, "y.conv2d_3")):
        yield from conv(f"features.{k}", name)
    yield from linear("hidden", "h.linear")
    yield from linear("out", "logits.linear")


def resnet20(module: twins.ResNet) -> Iterator[Pair]:
    blocks = len(module.blocks) // 3
    yield from conv("conv", "y.conv2d", bias=False)
    yield from norm("norm", "y.batch_norm", running=True)
    names = [f"y.{k}.block" for k in range(blocks)]
    for stage in (1, 2):
        names += ["y.block" if stage == 1 else "y.block_2", *(f"y.{k}.block_{stage + 1}" for k in range(blocks - 1))]
    for k, (name, block) in enumerate(zip(names, module.blocks, strict=True)):
        for part in (1, 2):
            suffix = "" if part == 1 else "_2"
            yield from conv(f"blocks.{k}.conv{part}", f"{name}.y.conv2d{suffix}", bias=False)
            yield from norm(f"blocks.{k}.norm{part}", f"{name}.y.batch_norm{suffix}", running=True)
        if not isinstance(block.short, nn.Identity):
            yield from conv(f"blocks.{k}.short.0", f"{name}.s.conv2d", bias=False)
            yield from norm(f"blocks.{k}.short.1", f"{name}.s.batch_norm", running=True)
    yield from linear("out", "logits.linear")


def forecast(module: nn.Module) -> Iterator[Pair]:
    yield from lstm("lstm", "h.lstm")
    yield from linear("out", "z.linear")


def char_lm_lstm(module: nn.Module) -> Iterator[Pair]:
    yield Pair("embed.weight", "x.embedding.table")
    yield from lstm("lstm", "x.0.lstm")
    yield from linear("out", "logits.linear")


def gpt(module: twins.GPT) -> Iterator[Pair]:
    yield Pair("embed.weight", "e.embedding.table")
    yield Pair("place", "P")
    for k in range(len(module.layers)):
        theirs, ours = f"layers.{k}", f"x.{k}"
        yield from norm(f"{theirs}.norm1", f"{ours}.layer_norm")
        for name, letter in (("query", "Q"), ("key", "K"), ("value", "V")):
            flat = f"{ours}.multi_head.{letter}"
            yield Pair(f"{theirs}.attention.{name}.weight", flat, lambda w: w.reshape(len(w), -1).T)
        merged = f"{ours}.multi_head.O"
        yield Pair(f"{theirs}.attention.out.weight", merged, lambda w: w.reshape(-1, w.shape[-1]).T)
        yield from norm(f"{theirs}.norm2", f"{ours}.layer_norm_2")
        yield from linear(f"{theirs}.up", f"{ours}.linear")
        yield from linear(f"{theirs}.down", f"{ours}.linear_2")
    yield from norm("norm", "logits.layer_norm")
    yield from linear("out", "logits.linear")


def gcn(module: nn.Module) -> Iterator[Pair]:
    for theirs, ours in (("one", "h.gcn"), ("two", "z.gcn")):
        yield Pair(f"{theirs}.weight", f"{ours}.W")
        yield Pair(f"{theirs}.bias", f"{ours}.b")


def ddpm(module: nn.Module) -> Iterator[Pair]:
    yield from linear("time", "noise_in.time.linear")
    places = {"fine": ("a", 2), "coarse": ("b", 3), "up": ("d", 2)}
    for theirs, (statement, count) in places.items():
        for k in range(1, count + 1):
            ours = f"noise_in.{statement}.timed" + (f"_{k}" if k > 1 else "")
            yield from conv(f"{theirs}{k}.conv", f"{ours}.y.conv2d")
            yield from linear(f"{theirs}{k}.time", f"{ours}.s.linear")
            yield from norm(f"{theirs}{k}.norm", f"{ours}.f.group_norm")
    yield from conv("out", "noise_in.e.conv2d")


PAIRS: dict[str, Callable[[Any], Iterator[Pair]]] = {
    "lenet": lenet,
    "resnet20": resnet20,
    "lstm": forecast,
    "char_lm_lstm": char_lm_lstm,
    "gpt": gpt,
    "gcn": gcn,
    "ddpm": ddpm,
}


def twin(name: str, arguments: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The module of the recipe `name` under the model's arguments; an LSTM's second bias stays at 0."""
    module = twins.TWINS[name](**arguments).to(dtype)
    for path, parameter in module.named_parameters():
        if path.endswith("bias_hh_l0"):
            parameter.requires_grad_(False).zero_()
    return module


def begin(name: str, module: nn.Module, ours: Mapping[str, Array]) -> None:
    """Let the twin start where our model does; all of its tensors are met, and `ours` may hold an optimizer's too."""
    state = module.state_dict()
    pairs = list(PAIRS[name](module))
    theirs = {path for path in state if not path.endswith(("num_batches_tracked", "bias_hh_l0"))}
    if {pair.theirs for pair in pairs} != theirs:
        raise ValueError(f"{name}'s twin has tensors that ours has not: {sorted(theirs)}")
    for pair in pairs:
        value = torch.from_numpy(np.ascontiguousarray(pair.of(ours[pair.ours])))
        if value.shape != state[pair.theirs].shape:
            raise ValueError(f"{pair.ours} is {tuple(value.shape)} in the twin, not {tuple(state[pair.theirs].shape)}")
        state[pair.theirs].copy_(value)


def keep(path: str, rate: float, width: Callable[[Any], int]) -> Callable[..., Array]:
    """The mask of a dropout of ours, [samples, width]."""

    def draw(module: nn.Module, samples: int, seed: int, step: int) -> Array:
        u = drawn(f"{path}.keep.u", (samples, width(module)), seed, step)
        return np.where(u < 1 - rate, 1.0, 0.0)

    return draw


def normal(module: nn.Module, samples: int, seed: int, step: int) -> Array:
    """The noise of ddpm by Box and Muller, as our library has it."""
    u, v = (drawn(f"e.{letter}", (samples, 64), seed, step) for letter in "uv")
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)


def drawn(key: str, shape: tuple[int, ...], seed: int, step: int) -> Array:
    """Uniform numbers under the key of one of our draws."""
    return uniforms(seed, hash_of(key), step, np.arange(int(np.prod(shape)))).reshape(shape)


DRAWS: dict[str, dict[str, Callable[..., Array]]] = {
    "lenet": {
        "before": keep("h.dropout", 0.25, lambda module: module.hidden.in_features),
        "after": keep("h.dropout_2", 0.5, lambda module: module.hidden.out_features),
    },
    "gcn": {
        "before": keep("h.dropout", 0.5, lambda module: len(module.one.weight)),
        "after": keep("z.dropout", 0.5, lambda module: len(module.two.weight)),
    },
    "ddpm": {
        "u": lambda module, samples, seed, step: drawn("u", (samples,), seed, step),
        "noise": normal,
    },
}
"""What our step draws, by the names of the twin's arguments: (module, samples, seed, step) -> values."""


def draws(name: str, module: nn.Module, samples: int, seed: int, step: int, dtype: torch.dtype) -> dict[str, Any]:
    """All of our draws in a step (from 1)."""
    found = DRAWS.get(name, {}).items()
    return {argument: torch.from_numpy(draw(module, samples, seed, step)).to(dtype) for argument, draw in found}
