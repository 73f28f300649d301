"""From a plain Python function to LLVM instructions, without Numba's help for each line.

`lowered` tells Numba what a function of ours is typed as and how it is emitted; called from plain Python, the
function just runs. `Traced` is a value in LLVM that obeys Python's operators, so that one scalar, branch-free
source (`functions.py`) serves three ways: on NumPy values, on a scalar in a kernel, on a vector in a kernel.
This is also fast: tracing `exp` takes a millisecond where compiling it with Numba takes a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

LLVM = {
    "float32": ir.FloatType(),
    "float64": ir.DoubleType(),
    "int32": ir.IntType(32),
    "int64": ir.IntType(64),
    "bool": ir.IntType(1),
}
INTEGER_OF = {"float32": "int32", "float64": "int64"}
FLOAT_OF = {"int32": "float32", "int64": "float64"}
LIBRARY_HAS = ("llvm.fabs", "llvm.rint")  # what a GPU's compiler knows as its library's functions alone


class Vector(types.Type):
    """`lanes` elements in one register."""

    def __init__(self, element: types.Type, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element}, {lanes})")


def element_name(kind: types.Type) -> str | None:
    """``"float32"`` for a float32 or a vector of them; None for what is no number."""
    if isinstance(kind, Vector):
        kind = kind.element
    if isinstance(kind, (types.Float, types.Integer)):
        return str(kind) if str(kind) in LLVM else "int64"
    return "bool" if isinstance(kind, types.Boolean) else None


def lanes_of(kind: types.Type) -> int:
    """The number of lanes; 0 for a scalar."""
    return kind.lanes if isinstance(kind, Vector) else 0


def lowered(function: Any, typer: Callable[..., Any], emitter: Callable[..., Any]) -> None:
    """In kernels, `function` has the type that `typer` gives it and the code that `emitter` builds.

    typer(*types) -> (result, *arguments) or None where it does not apply; emitter(context, builder, signature,
    arguments) -> value.
    """

    class Template(AbstractTemplate):
        key = function

        def generic(self, args: Sequence[types.Type], kws: Any) -> Any:
            found = None if kws else typer(*args)
            return None if found is None else signature(*found)

    infer_global(function, types.Function(Template))
    lower_builtin(function, types.VarArg(types.Any))(emitter)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Traced:
    """A value under construction: a scalar (lanes 0) or a vector, of a known element."""

    builder: ir.IRBuilder
    value: ir.Value
    element: str
    lanes: int = 0

    def like(self, value: ir.Value, element: str | None = None) -> Traced:
        """Another value of the same shape."""
        return Traced(self.builder, value, element or self.element, self.lanes)

    def const(self, number: float | int, element: str | None = None) -> Traced:
        """`number` in every lane."""
        element = element or self.element
        typed = int(number) if element.startswith("int") else float(np.dtype(element).type(number))
        constant = ir.Constant(LLVM[element], typed)
        if self.lanes:
            constant = ir.Constant(self.type_of(element), [constant] * self.lanes)
        return self.like(constant, element)

    def type_of(self, element: str) -> ir.Type:
        """The LLVM type of this shape with another element."""
        return ir.VectorType(LLVM[element], self.lanes) if self.lanes else LLVM[element]

    def lift(self, other: Any) -> Traced:
        """`other`, a number or a traced value, in this shape."""
        return other if isinstance(other, Traced) else self.const(other)

    @property
    def is_float(self) -> bool:
        return self.element.startswith("float")

    def _binary(self, other: Any, floating: str, integer: str, swap: bool = False) -> Traced:
        left, right = (self.lift(other), self) if swap else (self, self.lift(other))
        build = getattr(self.builder, floating if self.is_float else integer)
        return self.like(build(left.value, right.value))

    def __add__(self, other: Any) -> Traced:
        return self._binary(other, "fadd", "add")

    def __radd__(self, other: Any) -> Traced:
        return self._binary(other, "fadd", "add", swap=True)

    def __sub__(self, other: Any) -> Traced:
        return self._binary(other, "fsub", "sub")

    def __rsub__(self, other: Any) -> Traced:
        return self._binary(other, "fsub", "sub", swap=True)

    def __mul__(self, other: Any) -> Traced:
        return self._binary(other, "fmul", "mul")

    def __rmul__(self, other: Any) -> Traced:
        return self._binary(other, "fmul", "mul", swap=True)

    def __truediv__(self, other: Any) -> Traced:
        return self._binary(other, "fdiv", "sdiv")

    def __rtruediv__(self, other: Any) -> Traced:
        return self._binary(other, "fdiv", "sdiv", swap=True)

    def __neg__(self) -> Traced:
        if self.is_float and library_of(self) is not None:
            return self.const(-0.0) - self  # a GPU's compiler knows no negation
        return self.like(self.builder.fneg(self.value)) if self.is_float else 0 - self

    def __and__(self, other: Any) -> Traced:
        return self._binary(other, "and_", "and_")

    def __or__(self, other: Any) -> Traced:
        return self._binary(other, "or_", "or_")

    def __xor__(self, other: Any) -> Traced:
        return self._binary(other, "xor", "xor")

    def __lshift__(self, other: Any) -> Traced:
        return self._binary(other, "shl", "shl")

    def __rshift__(self, other: Any) -> Traced:
        return self._binary(other, "ashr", "ashr")

    def compare(self, sign: str, other: Any) -> Traced:
        """A comparison, lane by lane; with a NaN only ``!=`` holds."""
        right = self.lift(other).value
        if not self.is_float:
            return self.like(self.builder.icmp_signed(sign, self.value, right), "bool")
        build = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
        return self.like(build(sign, self.value, right), "bool")

    def __lt__(self, other: Any) -> Traced:
        return self.compare("<", other)

    def __le__(self, other: Any) -> Traced:
        return self.compare("<=", other)

    def __gt__(self, other: Any) -> Traced:
        return self.compare(">", other)

    def __ge__(self, other: Any) -> Traced:
        return self.compare(">=", other)

    def __eq__(self, other: Any) -> Traced:  # type: ignore[override]
        return self.compare("==", other)

    def __ne__(self, other: Any) -> Traced:  # type: ignore[override]
        return self.compare("!=", other)

    def intrinsic(self, name: str, *others: Any) -> Traced:
        """LLVM's intrinsic of that name, which works lane by lane: ``llvm.sqrt``, ``llvm.rint``, ..."""
        operands = [self, *(self.lift(other) for other in others)]
        kind = self.type_of(self.element)
        suffix = f"v{self.lanes}" if self.lanes else ""
        suffix += {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64"}[self.element]
        full = f"{name}.{suffix}"
        if name in LIBRARY_HAS and (library := library_of(self)) is not None:
            full = library.named(name.removeprefix("llvm."), self.element)
        declared = declare(self.builder.module, full, kind, [kind] * len(operands))
        # which zero is the greater takes half of a maximum's instructions; as in NumPy, it may be either
        flags = ("nsz",) if name in ("llvm.maximum", "llvm.minimum") else ()
        return self.like(self.builder.call(declared, [operand.value for operand in operands], fastmath=flags))

    def scaled(self, i: Traced) -> Traced:
        """self · 2^i, rounded once, by LLVM's intrinsic: only for targets that have an instruction for it."""
        kind, power = self.type_of(self.element), self.type_of("int32")
        exponent = i.value if i.element == "int32" else self.builder.trunc(i.value, power)
        suffix = f"v{self.lanes}" if self.lanes else ""
        name = f"llvm.ldexp.{suffix}{'f32' if self.element == 'float32' else 'f64'}.{suffix}i32"
        return self.like(
            self.builder.call(declare(self.builder.module, name, kind, [kind, power]), [self.value, exponent])
        )


@dataclass(frozen=True)
class Library:
    """The mathematics of a machine whose names are not C's: a module's attribute `library`.

    sources: what has a source of ours instead, by name and element.
    """

    prefix: str
    sources: Mapping[tuple[str, str], Callable[..., Any]]

    def named(self, name: str, element: str) -> str:
        return self.prefix + name + ("f" if element == "float32" else "")


def library_of(x: Traced) -> Library | None:
    """The library of the module that `x` is computed in; None: C's."""
    found: Library | None = getattr(x.builder.module, "library", None)
    return found


def declare(module: ir.Module, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
    """The function `name` in `module`, declared once."""
    found = module.globals.get(name)
    return found if found is not None else ir.Function(module, ir.FunctionType(result, arguments), name)


# The few operations that differ between NumPy values and traced ones.


def element_of(x: Any) -> str:
    """The element type of a traced or a NumPy value; Python's own floats are float64."""
    return x.element if isinstance(x, Traced) else str(np.result_type(x))


def constant(x: Any, number: float | int) -> Any:
    """`number` in the type of x."""
    return x.const(number) if isinstance(x, Traced) else np.asarray(x).dtype.type(number)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b; what is not chosen, NaN included, leaves no trace."""
    if not isinstance(condition, Traced):
        return np.where(condition, a, b)[()]
    of = a if isinstance(a, Traced) else b
    return of.like(of.builder.select(condition.value, of.lift(a).value, of.lift(b).value))


def muladd(a: Any, b: Any, c: Any) -> Any:
    """a b + c, fused where the target has such an instruction (never a call of a slow library fma)."""
    traced = next((x for x in (a, b, c) if isinstance(x, Traced)), None)
    if traced is None:
        return _rounded_once(a, b, c)
    return traced.lift(a).intrinsic("llvm.fmuladd", b, c)


def _rounded_once(a: Any, b: Any, c: Any) -> Any:
    """a b + c; in float32 through float64, which holds the product of two exactly, as if it were fused."""
    if np.result_type(a, b, c) != np.float32:
        return a * b + c
    return np.asarray(np.float64(a) * b + c).astype(np.float32)[()]


def bits_of(x: Any) -> Any:
    """The bits of a float as a signed integer of the same width."""
    if not isinstance(x, Traced):
        return np.asarray(x).view(INTEGER_OF[element_of(x)])[()]
    element = INTEGER_OF[x.element]
    return x.like(x.builder.bitcast(x.value, x.type_of(element)), element)


def of_bits(i: Any) -> Any:
    """The float that has these bits."""
    if not isinstance(i, Traced):
        return np.asarray(i).view(FLOAT_OF[element_of(i)])[()]
    element = FLOAT_OF[i.element]
    return i.like(i.builder.bitcast(i.value, i.type_of(element)), element)


def float_of(i: Any) -> Any:
    """An integer as a float of the same width."""
    if not isinstance(i, Traced):
        return np.asarray(i).astype(FLOAT_OF[element_of(i)])[()]
    element = FLOAT_OF[i.element]
    return i.like(i.builder.sitofp(i.value, i.type_of(element)), element)


def call_traced(
    name: str,
    source: Callable[..., Any],
    builder: ir.IRBuilder,
    values: Sequence[Traced],
    result: str | None = None,
) -> Traced:
    """A call of the LLVM function that `source` describes, traced once a module and always inlined.

    result: the element of the outcome where it is not that of the first value.
    """
    of = values[0]
    full = "_".join([name, *(value.element for value in values), str(of.lanes)])
    kinds = [value.type_of(value.element) for value in values]
    found = builder.module.globals.get(full)
    if found is None:
        found = ir.Function(builder.module, ir.FunctionType(of.type_of(result or of.element), kinds), full)
        found.linkage = "internal"
        found.attributes.add("alwaysinline")
        inside = ir.IRBuilder(found.append_basic_block("entry"))
        traced = [Traced(inside, a, v.element, v.lanes) for a, v in zip(found.args, values, strict=True)]
        inside.ret(source(*traced).value)
    return of.like(builder.call(found, [value.value for value in values]), result or of.element)


TRACED: dict[Any, tuple[Callable[..., Any], bool]] = {}
"""What is elementwise: its source, and whether integers stay integers."""


def elementwise(
    function: Any,
    source: Callable[..., Any],
    *,
    integers: bool = False,
    result: str | None = None,
    vectors_only: bool = False,
) -> None:
    """`function` works lane by lane, as `source` says, on scalars and vectors of one element type.

    Scalars among vectors are broadcast and take the vectors' element, as in NumPy; among scalars float32 beside
    float64 is widened, and an integer beside floats becomes one.
    integers: integers stay integers, else they become float64. result: the element of the outcome, if another.
    vectors_only: scalars are Numba's own affair, and so are booleans that are no lanes.
    """

    def typer(*kinds: types.Type) -> Any:
        elements = [element_name(kind) for kind in kinds]
        if None in elements or (vectors_only and not any(lanes_of(kind) for kind in kinds)):
            return None
        lanes = max(lanes_of(kind) for kind in kinds)
        strong = [e for e, kind in zip(elements, kinds, strict=True) if lanes_of(kind) or not lanes]
        floats = [e for e in strong if e in ("float32", "float64")] or [e for e in elements if e == "float64"]
        whole = "bool" if set(elements) == {"bool"} else "int64"
        element = max(floats) if floats else whole if integers else "float64"
        scalar = NUMBA[element]
        kind = Vector(scalar, lanes) if lanes else scalar
        outcome = NUMBA[result] if result else scalar
        given = [Vector(scalar, lanes) if lanes_of(k) else scalar for k in kinds]
        return (Vector(outcome, lanes) if lanes else outcome, *(given if lanes else [kind] * len(kinds)))

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        lanes = lanes_of(sig.return_type)
        values = []
        for kind, value in zip(sig.args, args, strict=True):
            name = element_name(kind) or ""
            wide = splat(builder, value, lanes) if lanes and not lanes_of(kind) else value
            values.append(Traced(builder, wide, name, lanes))
        library = library_of(values[0])
        chosen = library.sources.get((function.__name__, values[0].element), source) if library else source
        return call_traced(function.__name__, chosen, builder, values, result).value

    lowered(function, typer, emitter)
    TRACED[function] = source, integers


NUMBA: dict[str, Any] = {
    "float32": types.float32,
    "float64": types.float64,
    "int64": types.int64,
    "bool": types.boolean,
}


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """A vector with `value` in every lane."""
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(LLVM["int32"], 0))
    zeros = ir.Constant(ir.VectorType(LLVM["int32"], lanes), None)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)
