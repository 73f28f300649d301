"""The scalar functions of kernels, as branch-free Python that runs on NumPy values, scalars and vectors alike."""
from __future__ import annotations
from typing import Any
import numpy as np
from chainrule.codegen.emit import elementwise, muladd
__all__ = ["fma", "maximum"]
def fma(a: Any, b: Any, c: Any) -> Any:
    return a * b + c
elementwise(fma, muladd)
def maximum(a: Any, b: Any) -> Any:
    return np.maximum(a, b)
elementwise(maximum, lambda a, b: a.intrinsic("llvm.maximum", b))
