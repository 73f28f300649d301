"""Draws DOT with the Graphviz library in pygraphviz's wheel: ``python -P wheel.py svg < a.dot > a.svg``.

A program, not a module: it runs in a process of its own, so that a layout can be stopped, and imports nothing of ours.
"""

import sys

import pygraphviz


def main(format: str) -> None:
    """DOT from standard input, the picture to standard output."""
    graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
    sys.stdout.buffer.write(graph.draw(format=format, prog="dot"))


if __name__ == "__main__":
    main(sys.argv[1])
