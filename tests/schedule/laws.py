"""The law of the scheduler: a graph's program computes what the graph says, at every size, blocks in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from chainrule import reference
from chainrule.ir.formula import DType
from chainrule.ir.graph import Graph
from chainrule.ir.program import Program
from chainrule.schedule import schedule
from tests.schedule.interpret import interpret


def values_of(graph: Graph, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs and parameters; integers below their bound."""
    generator = np.random.default_rng(seed)
    found = {}
    for tensor in (*graph.inputs, *(p.tensor for p in graph.params), *(s.tensor for s in graph.states)):
        shape = tuple(sizes[e.name] if e.is_Symbol else int(e) for e in tensor.shape)
        if tensor.dtype is DType.FLOAT:
            found[tensor.name] = generator.normal(size=shape)
        else:
            bound = tensor.bound if tensor.bound is not None else 2
            found[tensor.name] = generator.integers(0, max(1, sizes.get(str(bound), 0) or int(bound)), shape)
    return found


def assert_law(
    graph: Graph,
    sizes: Mapping[str, int],
    hint: Mapping[str, int] | None = None,
    program: Program | None = None,
    blocks: Callable[[range], Iterable[int]] = iter,
    seed: int = 0,
    values: dict[str, np.ndarray] | None = None,
) -> Program:
    """interpret(schedule(graph)) == evaluate(graph), for outputs and updated stores."""
    program = schedule(graph, training=True, sizes=hint) if program is None else program
    values = values_of(graph, sizes, seed) if values is None else values
    expected = reference.evaluate(graph, values)
    found = interpret(program, values, sizes, blocks)
    wanted: list[tuple[str, Any]] = [(name, expected[name]) for name in graph.outputs if name not in values]
    wanted += [(name, values[name]) for name in graph.outputs if name in values and name in found]
    stores = {u.store: expected[u.value] for u in graph.updates}
    wanted += list(stores.items())
    for name, value in wanted:
        if name in graph.outputs and name in stores:
            continue
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
    return program
