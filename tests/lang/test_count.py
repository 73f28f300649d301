"""A model that would make too many formulas is refused before anything is unrolled; what is legal is not."""

import time

import pytest

from tests.lang.texts import error, graph

USE = "model m:\n    input x[3]\n    y = {}\n"


def tower(step: str, height: int = 38) -> str:
    """Definitions f0 … of which each is `step` of the one below, and a model that calls the last."""
    below = "".join(f"fn f{k}(x, n = 2):\n{step.format(f=f'f{k - 1}')}" for k in range(1, height + 1))
    return "fn f0(x) = x + 1\n" + below + USE.format(f"f{height}(x)")


TWICE = "    a = {f}(x)\n    y = {f}(a)\n"
TEXTS = {
    "each calls the one below twice": tower(TWICE),
    "in one statement": tower("    y = {f}({f}(x))\n"),
    "by a repeat": tower("    repeat n:\n        x = {f}(x)\n"),
    "by a layer with a name": tower("    let g = {f}(_)\n    y = g(x) + g(2 * x)\n"),
    "by calling itself": "fn f(x, n) = if n > 0 then f(x, n - 1) + f(x, n - 1) else x\n" + USE.format("f(x, 30)"),
    "one behind the other": "model m:\n    input x[3]\n" + "    repeat 150000:\n        x = x + 1\n" * 2,
}


@pytest.mark.parametrize("name", TEXTS)
def test_too_many_formulas_are_refused_before_they_are_made(name):
    started = time.perf_counter()
    found = error(TEXTS[name])
    assert time.perf_counter() - started < 5  # a bound on hanging, not on speed
    assert found.problem.startswith("more than 200,000 formulas: ")
    assert found.span.file == "m.graph"
    assert found.way_out


def test_the_error_names_the_statement_and_its_number():
    found = error(tower(TWICE))
    assert (found.span.text.strip(), found.facts) == ("y = f38(x)", ("this statement alone makes 274,877,906,944",))


def test_what_is_not_taken_counts_nothing():
    recursion = "fn f(x, n) = if n > 0 then f(x, n - 1) + f(x, n - 1) else x\n"
    assert len(graph(recursion + USE.format("f(x, 3)")).nodes) == 15
    assert len(graph(tower(TWICE, 4)).nodes) == 16
    assert len(graph(tower("    y = if n > 2 then {f}(x) + {f}(x) else x\n")).nodes) == 1


def test_functions_of_the_language_count_nothing():
    many = " + ".join(["exp(x)"] * 400)
    assert len(graph("model m:\n    input x[3]\n    repeat 600:\n        y = 1\n    z = " + many + "\n").nodes) == 601
