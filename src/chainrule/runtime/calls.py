"""What a call of a program may pass and ask for, whatever runs it: names, shapes, dtypes, ranges; else what is said.

Nothing here changes anything: a call that is refused leaves parameters and states as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, nearest
from chainrule.executable import Executable, Input, evaluate
from chainrule.runtime.buffers import ELEMENTS, Plan, Shape, aligned, polynomial_text, shape_text
from chainrule.runtime.values import Array, as_array, check_dtype


def check_names(executable: Executable, given: Mapping[str, Any]) -> None:
    """Raises ChainruleError where an input is unknown or missing."""
    names = tuple(item.name for item in executable.inputs)
    unknown = [str(name) for name in given if name not in names]
    if unknown:
        raise ChainruleError(
            f"{executable.name} has no input {unknown[0]!r}\n  {nearest(unknown[0], names)}"
            f"\n  Way out: pass {', '.join(names) or 'nothing'}"
        )
    missing = [name for name in names if name not in given]
    if missing:
        raise ChainruleError(
            f"input {missing[0]} is missing\n  given: {', '.join(given) or 'nothing'}"
            f"\n  Way out: pass {', '.join(names)}"
        )


def array_of(executable: Executable, item: Input, value: object) -> Array:
    """The input as an array whose dtype can be cast."""
    array = as_array(item.name, value)
    check_dtype(item.name, array, executable.buffers[item.buffer].element)
    return array


def moves(executable: Executable, item: Input, shape: Shape, steps: int) -> bool:
    """Whether an input of this shape has a slice for each of `steps` steps."""
    axes = executable.buffers[item.buffer].shape
    if len(shape) != len(axes) + 1:
        return False
    if shape[0] != steps:
        raise ChainruleError(
            f"input {item.name} has {shape[0]} slices for {steps} steps\n  given: shape {shape}"
            f"\n  declared: {item.name}{shape_text(axes)}\n  Way out: one slice a step, or no leading axis"
        )
    return True


def numbers(executable: Executable, given: Mapping[str, Sequence[float]], steps: int) -> dict[int, Array]:
    """By buffer, the values that run-time numbers have in each of `steps` steps."""
    known = {item.name: item.buffer for item in executable.scalars}
    found = {}
    for name, values in given.items():
        if name not in known:
            problem = f"{executable.name} has no run-time number {name!r}\n  {nearest(name, known)}"
            raise ChainruleError(f"{problem}\n  Way out: give values for {', '.join(known) or 'none'}")
        array = np.asarray(values, ELEMENTS[executable.buffers[known[name]].element])
        if array.shape != (steps,):
            problem = f"{name} has values of shape {array.shape} for {steps} steps"
            raise ChainruleError(f"{problem}\n  Way out: one number a step")
        found[known[name]] = array
    return found


def positive(steps: int) -> int:
    """`steps`, 1 or more."""
    if steps < 1:
        raise ChainruleError(f"{steps} steps were asked for\n  Way out: steps=1 or more, or leave it out")
    return int(steps)


def result_of(executable: Executable, plan: Plan, name: str) -> tuple[Shape, str]:
    """The shape and the dtype of the output that an array is given for."""
    buffers = {item.name: item.buffer for item in executable.outputs}
    if name not in buffers:
        raise ChainruleError(
            f"{executable.name} has no output {name!r}\n  {nearest(name, buffers)}"
            f"\n  Way out: give arrays for {', '.join(buffers)}"
        )
    return plan.shapes[buffers[name]], executable.buffers[buffers[name]].element


def check_out(
    executable: Executable, plan: Plan, out: Mapping[str, Any], kinds: tuple[type, ...] = (np.ndarray,)
) -> None:
    """Raises ChainruleError where an array (one of `kinds`) that is given for a result cannot hold it."""
    for name, given in out.items():
        shape, element = result_of(executable, plan, name)
        known = isinstance(given, kinds)
        if not known or (given.shape, given.dtype.name) != (shape, element):
            said = f"{given.dtype}{list(given.shape)}" if known else type(given).__name__
            raise ChainruleError(
                f"out[{name!r}] is {said}, the result is {element}{list(shape)}"
                f"\n  Way out: out={{{name!r}: np.empty({shape}, {element!r})}}"
            )
        if not (given.flags.writeable if isinstance(given, np.ndarray) else not given.readonly):
            raise ChainruleError(f"out[{name!r}] cannot be written to\n  Way out: pass a copy of it")


def chosen(executable: Executable, found: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """Those of the results that are asked for."""
    for name in outputs:
        if name not in found:
            raise ChainruleError(
                f"{executable.name} has no output {name!r}\n  {nearest(name, found)}"
                f"\n  Way out: ask for {', '.join(found)}"
            )
    return {name: found[name] for name in outputs}


def checked(executable: Executable) -> tuple[Input, ...]:
    """The inputs whose values are used as an index."""
    return tuple(item for item in executable.inputs if item.bound is not None)


def out_of_range(item: Input, array: Array, position: int, plan: Plan, steps: int | None) -> ChainruleError:
    """The error for the element at `position` of an input's array. No step was done."""
    place = tuple(int(k) for k in np.unravel_index(position, array.shape))
    bound = evaluate(item.bound or (), plan.sizes)
    text = polynomial_text(item.bound or ())
    limit = str(bound) if text == str(bound) else f"{text} = {bound}"
    return ChainruleError(
        f"input {item.name} holds an index that is out of range"
        f"\n  {item.name}{list(place)} is {int(array.flat[position])}, and 0 <= {item.name} < {limit} is declared"
        "\n  no step was done; parameters and states are as before"
        + (f" (of {steps} steps)" if steps else "")
        + f"\n  Way out: correct {item.name}, or declare a larger range"
    )


def constants(executable: Executable) -> Iterable[tuple[int, Array]]:
    """The aligned array of each constant buffer."""
    for k, buffer in enumerate(executable.buffers):
        if buffer.space == "constant":
            data = buffer.data or b""
            block = aligned(len(data))
            block[:] = np.frombuffer(data, np.uint8)
            shape = tuple(evaluate(axis, {}) for axis in buffer.shape)
            yield k, block.view(ELEMENTS[buffer.element]).reshape(shape)
