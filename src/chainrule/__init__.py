"""Chainrule: write a network as mathematics, see its chain rule, train it with fused kernels.

The library's layers and functions are here too, by their names: ``cr.linear(x, 128)``.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_offered, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "api.tensor": ["Dim", "Tensor", "dim", "formula", "function", "gradient", "input", "param"],
        "api.model": ["Model", "Step", "grad", "load", "value_and_grad"],
        "errors": ["ChainruleError", "ChainruleWarning", "SourceError", "Span"],
    },
)


def __getattr__(name: str) -> Any:
    """What the package offers, else the library's function of that name."""
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return _offered(name)
    except AttributeError:
        return _offered("function")(name)
