"""A kernel that does what several launches of another would: each block finds in a table which of them it belongs to.

    def update(w, g, rate, length, scratch):
        for i in range(block() * 256 + thread(), length, blocks() * 256):
            w[i] = w[i] - rate[0] * g[i]

    def update_of_each(owners, table, scratch):
        own = owners[block()]
        number = block() - table[own]
        count = table[own + 1]
        w = view_float32(table[own + 2], 0)
        ...
        length = table[own + 5]
        for i in range(number * 256 + thread(), length, count * 256):
            w[i] = w[i] - rate[0] * g[i]

`owners` has a word for each block: where in the table its set of arguments begins. There stand the set's first block,
how many it has, and its parameters.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from chainrule.codegen.cuda.kernel import imports
from chainrule.codegen.cuda.objects import NAMES, Job, Parameter, Pointer, Size
from chainrule.codegen.names import Names
from chainrule.executable import SET

WORD = Pointer("int64")


def of_each(job: Job, entry: str) -> Job:
    """The kernel of `job` over a table of sets of its arguments, as a function named `entry`. What it keeps in scratch
    memory, all would share."""
    (*_, tree) = ast.parse(job.source).body
    assert isinstance(tree, ast.FunctionDef)
    documented = tree.body[0]
    assert isinstance(documented, ast.Expr) and documented.end_lineno is not None
    lines = job.source.splitlines()
    *given, scratch = (argument.arg for argument in tree.args.args)
    names = Names({*NAMES, entry, *given, scratch, *_named(tree)})
    owners, table, own, number, count = map(names.fresh, ("owners", "table", "own", "number", "count"))
    top = [
        f"{own} = {owners}[block()]",
        f"{number} = block() - {table}[{own}]",
        f"{count} = {table}[{own} + 1]",
        *_arguments(given, job.parameters, f"{table}[{own} + {{}}]"),
    ]
    said = "\n".join(lines[documented.end_lineno :])
    body = re.sub(r"\bblock\(\)", number, re.sub(r"\bblocks\(\)", count, said))
    head = [f"def {entry}({owners}, {table}, {scratch}):", *lines[tree.lineno : documented.end_lineno]]
    text = "\n".join((*head, *(f"    {line}" for line in top), body, ""))
    source = "\n".join((*imports(_named(ast.parse(text))), text))
    return replace(job, source=source, entry=entry, parameters=(WORD, WORD, Size()))


def _arguments(given: Sequence[str], kinds: Sequence[Parameter], word: str) -> Iterator[str]:
    """A set's parameters, read from the table."""
    for k, (name, kind) in enumerate(zip(given, kinds, strict=False)):
        read = word.format(SET + k)
        yield f"{name} = view_{kind.element}({read}, 0)" if isinstance(kind, Pointer) else f"{name} = {read}"


def _named(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
