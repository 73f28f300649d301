"""What a caller passes becomes an array of the program's: silently where that is safe, else an error that names it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainrule.errors import ChainruleError

Array = NDArray[Any]

SAFE = {"float32": "biuf", "float64": "biuf", "int64": "bi", "bool": "b"}  # kinds of dtypes, as NumPy's letters
WAY_OUT = {
    "float32": "pass numbers: {name}.astype('float32')",
    "float64": "pass numbers: {name}.astype('float64')",
    "int64": "if every value is a whole number: {name}.astype('int64')",
    "bool": "pass truth values: {name} != 0",
}


def as_array(name: str, value: object) -> Array:
    """`value` as an array: of NumPy, anything with ``__array__`` or DLPack, a list, a number."""
    if isinstance(value, np.ndarray):
        return value
    try:
        if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except Exception as problem:  # whatever another library's conversion raises, its user should see our words
        raise ChainruleError(
            f"input {name} cannot be read as an array\n  given: {type(value).__module__}.{type(value).__qualname__}"
            f"\n  {type(problem).__name__}: {problem}\n  Way out: pass a NumPy array (of torch: {name}.detach().cpu())"
        ) from None


def check_dtype(name: str, array: Array, element: str) -> None:
    """Raises ChainruleError where `array` cannot become `element` without a loss that its owner should know of."""
    kind = array.dtype.kind
    if kind in SAFE[element] or (element == "int64" and kind == "u" and array.dtype.itemsize < 8) or array.size == 0:
        return
    if element == "int64" and kind == "u" and int(array.max()) <= np.iinfo(np.int64).max:
        return
    raise ChainruleError(
        f"input {name} has dtype {array.dtype}, {element} is declared"
        f"\n  given: {name} of shape {array.shape} and dtype {array.dtype}"
        f"\n  Way out: {WAY_OUT[element].format(name=name)}"
    )
