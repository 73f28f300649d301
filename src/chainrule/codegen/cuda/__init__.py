"""The GPU's code: programs as kernels for NVIDIA's architectures.

`emit` is the whole stage; `printed` prints the kernels without compiling them. Data go one way: a loop tree is mapped
to teams of threads (`mapping`, by what `turns` of loops have to do with each other), written down (`teams`, `product`,
`writer`), and compiled (`objects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from chainrule.codegen.cuda.emit import emit, launched, printed

__all__ = ["emit", "launched", "printed"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"emit": ["emit", "launched", "printed"]})
