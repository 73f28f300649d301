"""Graphs by name: nodes and edges as arrays. Each undirected edge stands in both directions."""

from __future__ import annotations

import lazy_loader
import numpy as np

from chainrule.train import pictures
from chainrule.train.files import Ask
from chainrule.train.samples import Array, Data

networkx = lazy_loader.load("networkx")


def nodes(name: str, x: Array, edges: Array, label: Array, known: Array) -> Data:
    """A graph whose nodes have classes, of which those of the nodes `known` are learned from and the others judge.

    ``x[nodes, features]``, ``source[edges]``, ``target[edges]``; ``seen[k]`` are nodes, ``label[k]`` their classes.
    """
    hidden = np.setdiff1d(np.arange(len(x)), known)
    graph = {"x": x.astype(np.float32), "source": edges[0].astype(np.int64), "target": edges[1].astype(np.int64)}
    train, test = ({**graph, "seen": part, "label": label[part].astype(np.int64)} for part in (known, hidden))
    return Data(name, train, test, whole=True)


def karate(ask: Ask) -> Data:
    """Zachary's karate club: 34 members, 78 friendships, the club that each chose; known of the two leaders alone.

    Nodes have no features but themselves: x is the identity.
    """
    graph = networkx.karate_club_graph()
    edges = np.array(graph.edges).T
    label = np.array([int(graph.nodes[k]["club"] == "Officer") for k in graph])
    return nodes("karate", np.eye(len(label)), np.hstack([edges, edges[::-1]]), label, np.array([0, 33]))


def digits_graph(ask: Ask) -> Data:
    """The 1797 digits, each joined with its 10 nearest (24 678 directed edges); 5 known labels a class.

    Distances are exact, between the pixels 0 … 16; of equally near ones the first are taken.
    """
    digits = pictures.digits_table(ask)
    pixels, label = digits[:, :-1].astype(np.int64), digits[:, -1].astype(np.int64)
    squares = np.sum(pixels**2, 1)
    distance = squares[:, None] + squares[None, :] - 2 * pixels @ pixels.T
    np.fill_diagonal(distance, distance.max() + 1)
    joined = np.zeros(distance.shape, bool)
    np.put_along_axis(joined, np.argsort(distance, axis=1, kind="stable")[:, :10], True, 1)
    edges = np.array(np.nonzero(joined | joined.T))
    rng = np.random.default_rng(0)
    known = np.concatenate([rng.permutation(np.flatnonzero(label == c))[:5] for c in range(10)])
    return nodes("digits_graph", pixels / 16, edges, label, known)
