"""PyTorch's own samples against the language: each OpInfo entry's values, gradients and second derivatives, in float64.

A row of a table is a function with the operation's own signature, behind the page that it writes. It says by raising
`NotExpressible` or `OutOfScope` that a sample has no counterpart here; every other sample must agree.
"""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map

from chainrule.reference import evaluate
from tests.conformance import derivation
from tests.conformance.page import NotExpressible, NumberedValue, OutOfScope, Page, Value
from tests.conformance.tables import KINKS, ROWS, UNSAID

TOLERANCE = 1e-8  # of the tensor's largest
LEAST = 1e-3  # what counts as its largest where all is smaller: samples are some 1 to 10, and cancel to 1e-12


@dataclass
class Entry:
    """How one OpInfo entry went."""

    name: str
    drawn: int = 0  # how many samples PyTorch gives
    samples: int = 0  # tried
    agreed: int = 0
    twice: int = 0  # of the agreed ones, compared in second derivatives too
    kinks: int = 0  # samples on a kink, where the conventions differ as stated; values agree
    left: Counter[str] = field(default_factory=Counter)  # why samples were not expressed
    wrong: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        if self.wrong:
            return "wrong"
        if self.agreed or self.kinks:
            return "agreed" if not self.left else "agreed in part"
        scope = any(reason.startswith("out of scope") for reason in self.left)
        return "out of scope" if scope else "not expressible"


def entries() -> dict[str, Any]:
    """The entries of OpInfo that have gradients in float64 on the CPU, by name."""
    return {
        op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""): op
        for op in op_db
        if op.supports_autograd and torch.float64 in op.supported_backward_dtypes("cpu")
    }


def samples(op: Any, first: int | None = None) -> list[Any]:
    """Its samples, or the first so many; the same numbers whenever and in whatever order it is asked."""
    torch.manual_seed(zlib.crc32(op.name.encode()))
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), first))


def chosen(found: Sequence[Any], most: int | None) -> list[Any]:
    """All, or `most` of them spread over the list."""
    if most is None or len(found) <= most:
        return list(found)
    return [found[k * len(found) // most] for k in range(most)]


def check(name: str, op: Any, most: int | None = None, twice: int | None = None, first: int | None = None) -> Entry:
    """Compare an entry's samples, the `first` ones or `most` over all; second derivatives of at most `twice`."""
    if name not in ROWS:
        return Entry(name, left=Counter([UNSAID.get(name, "not yet written")]))
    entry = Entry(name)
    drawn = samples(op, first)
    entry.drawn, found = len(drawn), chosen(drawn, most)
    again = {id(s) for s in chosen(found, twice)} if op.supports_gradgrad else set()
    for k, sample in enumerate(found):
        entry.samples += 1
        try:
            outcome = compare(name, op, sample, id(sample) in again)
        except (NotExpressible, OutOfScope) as reason:
            scope = "out of scope: " if isinstance(reason, OutOfScope) else ""
            entry.left[f"{scope}{reason}"] += 1
            continue
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        if outcome in ("agreed", "agreed twice"):
            entry.agreed += 1
            entry.twice += outcome == "agreed twice"
        elif outcome == "kink":
            entry.kinks += 1
        else:
            entry.wrong.append(f"sample {k}: {outcome}")
    return entry


@dataclass(frozen=True)
class Case:
    """A sample's text, its numbers, and which of its tensors are differentiated."""

    text: str
    outputs: tuple[Value, ...]
    tensors: dict[str, torch.Tensor]

    @property
    def wrt(self) -> tuple[str, ...]:
        return tuple(name for name, tensor in self.tensors.items() if tensor.requires_grad)


def written(name: str, sample: Any) -> Case:
    """The row's text for `sample`."""
    page, tensors = Page(), {}

    def value(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.layout is not torch.strided:
            raise OutOfScope("sparse tensors")
        if leaf.is_complex():
            raise OutOfScope("complex numbers")
        for known, tensor in tensors.items():
            if tensor is leaf:
                return Value(known, tuple(leaf.shape), kind(leaf))
        tensors[f"x{len(tensors)}"] = leaf
        given = page.input(f"x{len(tensors) - 1}", tuple(leaf.shape), kind(leaf))
        packed = leaf.is_contiguous() and leaf.storage_offset() == 0
        if given.dtype == "int":
            return NumberedValue(given.name, given.shape, given.dtype, packed, leaf.detach().numpy())
        return Value(given.name, given.shape, given.dtype, packed)

    arguments = tree_map(value, (sample.input, *sample.args))
    named = tree_map(value, sample.kwargs)
    result = ROWS[name](page, *arguments, **named)
    outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    return Case(page.text(outputs), outputs, tensors)


def kind(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    if tensor.dtype.is_floating_point:
        if tensor.dtype != torch.float64:
            raise OutOfScope(f"{str(tensor.dtype).removeprefix('torch.')} beside float64")
        return "float"
    return "int"


def expected(op: Any, sample: Any) -> list[torch.Tensor]:
    """PyTorch's tensors; complex ones as pairs of real ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = op(sample.input, *sample.args, **sample.kwargs)
    if sample.output_process_fn_grad is not None:
        result = sample.output_process_fn_grad(result)
    found = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, torch.Tensor)]
    return [torch.stack((t.real, t.imag), -1) if t.is_complex() else t for t in found]


def compare(name: str, op: Any, sample: Any, twice: bool) -> str:
    """ "agreed", "agreed twice", "kink", or what is wrong."""
    case = written(name, sample)
    found = expected(op, sample)
    if len(found) != len(case.outputs):
        return f"{len(case.outputs)} outputs, PyTorch gives {len(found)}"
    values = {key: tensor.detach().resolve_neg().numpy() for key, tensor in case.tensors.items()}
    rng = np.random.default_rng(7)
    seeds, outputs = {}, {}
    for out, tensor in zip(case.outputs, found, strict=True):
        if tensor.dtype not in (torch.float64, torch.bool, torch.int64, torch.int32):
            raise OutOfScope(f"{str(tensor.dtype).removeprefix('torch.')} results")
        if tensor.requires_grad and out.name not in seeds and out.dtype == "float":
            seeds[out.name] = rng.normal(size=tuple(tensor.shape))
            outputs[out.name] = tensor
    wrt = case.wrt if seeds else ()
    if wrt:
        graph, bars = derivation.first(case.text, tuple(seeds), wrt)
    else:
        graph, bars = derivation.forward(case.text), {}
    result = evaluate(graph, {**values, **{f"{n}_seed": s for n, s in seeds.items()}})
    for out, tensor in zip(case.outputs, found, strict=True):
        if problem := differs(result[out.name], tensor.detach().numpy(force=True), f"value {out.name}"):
            return problem
    if not wrt:
        return "agreed"
    return gradients(name, case, (seeds, outputs), (result, bars), values, twice)


def gradients(name: str, case: Case, asked: Any, derived: Any, values: dict[str, Any], twice: bool) -> str:
    """The same for first and second derivatives."""
    (seeds, outputs), (result, bars) = asked, derived
    wrt = case.wrt
    leaves = [case.tensors[x] for x in wrt]
    given = [torch.from_numpy(np.asarray(seeds[n])) for n in outputs]
    firsts = torch.autograd.grad(list(outputs.values()), leaves, given, create_graph=twice, allow_unused=True)
    for x, g, leaf in zip(wrt, firsts, leaves, strict=True):
        g = torch.zeros_like(leaf) if g is None else g
        if problem := differs(result[bars[x]], g.detach().numpy(force=True), f"gradient of {x}"):
            if (kink := KINKS.get(name)) and kink.holds(values[x], result[bars[x]], g.detach().numpy(force=True)):
                return "kink"
            return problem
    if not twice:
        return "agreed"
    return second(name, case, seeds, firsts, values)


def second(name: str, case: Case, seeds: dict[str, Any], firsts: Sequence[Any], values: dict[str, Any]) -> str:
    wrt = case.wrt
    live = [(x, g) for x, g in zip(wrt, firsts, strict=True) if g is not None and g.requires_grad]
    if not live:
        return "agreed"
    rng = np.random.default_rng(8)
    names = tuple(x for x, _ in live)
    seeds2 = {f"{x}_seed2": rng.normal(size=tuple(g.shape)) for x, g in live}
    graph, bars = derivation.second(case.text, tuple(seeds), wrt, names)
    given = {**values, **seeds2, **{f"{n}_seed": s for n, s in seeds.items()}}
    needed = {tensor.name for tensor in graph.inputs}
    result = evaluate(graph, {n: v for n, v in given.items() if n in needed})
    leaves = [case.tensors[x] for x in wrt]
    cotangents = [torch.from_numpy(np.asarray(seeds2[f"{x}_seed2"])) for x, _ in live]
    try:
        wanted = torch.autograd.grad([g for _, g in live], leaves, cotangents, allow_unused=True)
    except RuntimeError:  # PyTorch's own second derivative fails on this sample
        return "agreed"
    for x, g, leaf in zip(wrt, wanted, leaves, strict=True):
        g = torch.zeros_like(leaf) if g is None else g
        g = g.detach().numpy(force=True)
        if problem := differs(result[bars[x]], g, f"second derivative by {x}"):
            kink = KINKS.get(name)
            return "kink" if kink and kink.holds(values[x], result[bars[x]], g) else problem
    return "agreed twice"


def differs(found: Any, wanted: Any, what: str) -> str:
    """What is wrong with `found`, or nothing."""
    if found.shape != wanted.shape:
        return f"{what}: shape {found.shape}, PyTorch's {wanted.shape}"
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    if same.all():
        return ""
    finite = wanted[np.isfinite(wanted)]
    scale = max(np.abs(finite).max(initial=0.0), LEAST)
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(found - wanted))
    worst = np.nanargmax(np.where(np.isnan(error), np.inf, error))
    error = error.reshape(-1)[worst]
    if error <= TOLERANCE * scale:
        return ""
    return f"{what}: {found.reshape(-1)[worst]!r}, PyTorch's {wanted.reshape(-1)[worst]!r} at {worst}, scale {scale:g}"
