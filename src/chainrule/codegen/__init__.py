"""Program -> Executable: generated source, generated functions, native objects.

`emit` is the whole stage; `sources` prints the kernels without compiling them. Both are imported when first used:
the run side asks `target` for the CPU's name, and must not wait for numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from chainrule.codegen.cpu import emit, printed, saved, sources
    from chainrule.codegen.kept import Kept, KeptModules
    from chainrule.codegen.workers import Worker, ready

__all__ = ["Kept", "KeptModules", "Worker", "emit", "printed", "ready", "saved", "sources"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cpu": ["emit", "printed", "saved", "sources"],
        "kept": ["Kept", "KeptModules"],
        "workers": ["Worker", "ready"],
    },
)
