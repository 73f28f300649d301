"""Tuning keeps what a measurement shows, and nothing that it does not: with a clock that the tests wind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import chainrule as cr
from chainrule import build, tuning
from chainrule.api.model import Model
from chainrule.choices import Choice
from chainrule.cli import bench, tune
from chainrule.options import Options
from chainrule.source import Source
from chainrule.tuning import Bench, Verdict, in_turns, tuned
from tests.test_build import enter

TEXT = """model net(hidden = 48):
    dim batch
    input x[batch, 32]
    input label[batch] : index 10
    loss = mean(cross_entropy(linear(relu(linear(x, hidden)), 10), label))
"""
SOURCE = Source(TEXT, "net.graph", "net")
TRAIN = Options("train", optimizer="sgd")
OLD, WIDE, TALL, BLAS = Choice("tile", 8, 2), Choice("tile", 8, 3), Choice("tile", 14, 2), Choice("blas")


@dataclass(frozen=True)
class Product:
    key: str
    choice: Choice = OLD
    launches: tuple[int, ...] = (0,)
    others: tuple[Choice, ...] = (WIDE, TALL, BLAS)

    def candidates(self, around):
        return (around, *(choice for choice in self.others if choice != around))


def clock(speeds):
    """Measures that take `speeds[product, choice]`, 100 where nothing is said; the products of a table add up."""
    asked = []

    def measure(tables, launches):
        asked.append((tables, launches))
        return [sum(speeds.get((key, choice), 100.0) for key, choice in table.items()) or 100.0 for table in tables]

    measure.asked = asked
    return measure


def test_the_fastest_candidate_is_chosen():
    (verdict,) = tuned([Product("a")], {}, clock({("a", TALL): 50.0, ("a", BLAS): 70.0}))
    assert verdict == Verdict("a", OLD, TALL, 100.0, 50.0)
    assert verdict.ratio == 2


def test_what_hardly_helps_is_not_chosen():
    (verdict,) = tuned([Product("a")], {}, clock({("a", TALL): 100 * (1 - tuning.LEAST / 2)}))
    assert (verdict.before, verdict.after) == (OLD, OLD)
    assert verdict.ratio == 1


def test_what_only_luck_chose_is_not_kept():
    times = iter([[100.0, 60.0, 100.0, 100.0], [100.0, 100.0, 100.0, 100.0], [100.0, 101.0]])
    (verdict,) = tuned([Product("a")], {}, lambda tables, launches: next(times))
    assert verdict.after == OLD


def test_products_are_judged_one_after_the_other_with_what_is_chosen_so_far():
    measure = clock({("a", WIDE): 10.0, ("b", BLAS): 20.0})
    told = []
    found = tuned([Product("a"), Product("b", launches=(2, 3))], {"c": BLAS}, measure, lambda *now: told.append(now))
    assert [verdict.after for verdict in found] == [WIDE, BLAS]
    assert told == [(0, 2, "a"), (1, 2, "b"), (2, 2, "")]
    for tables, launches in measure.asked:
        assert all(table["c"] == BLAS for table in tables)
        if launches == (2, 3):
            assert all(table["a"] == WIDE for table in tables)


def test_candidates_take_turns_and_the_median_counts():
    calls = []

    def watch(name, times):
        return lambda: calls.append(name) or next(times)

    a, b = iter([0, *range(1, 10)]), iter([0, 5, 1, 5, 1, 5, 1, 5, 1, 1])
    assert in_turns([watch("a", a), watch("b", b)]) == [5, 1]
    assert calls[:6] == ["a", "b", "a", "b", "b", "a"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("tuning") / "cache"


@pytest.fixture
def folder(home, monkeypatch):
    """A cache without programs and choices; kernels stay from test to test."""
    enter(monkeypatch, home)
    for path in [path for kind in ("choices", "manifest", "products") for path in home.glob(f"*.{kind}")]:
        path.unlink()
    yield home
    monkeypatch.undo()
    for known in (build.cache, build.walker, build._versions):
        known.cache_clear()


def other(program):
    """A choice of each of its products that is not what it has."""
    return {p.key: p.candidates(p.choice)[1] for p in program.products()}


def test_tuned_and_untuned_programs_never_mix(folder):
    untuned = build.executable(SOURCE, TRAIN)
    table = other(build.trials(SOURCE, TRAIN))
    assert set(table) == set(untuned.executable.products)
    build.keep_choices(table)
    found = build.executable(SOURCE, TRAIN)
    assert found.executable.tuned == table
    assert found.executable.kernels != untuned.executable.kernels
    manifests = {path.name for path in folder.glob("*.manifest")}
    assert len(manifests) == 2
    assert build.executable(SOURCE, TRAIN).executable == found.executable
    assert {path.name for path in folder.glob("*.manifest")} == manifests  # from the cache
    (path,) = folder.glob("*.choices")
    path.unlink()
    assert build.executable(SOURCE, TRAIN).executable == untuned.executable


def test_what_another_model_was_tuned_to_compiles_nothing_anew(folder, monkeypatch):
    before = build.executable(SOURCE, TRAIN)
    build.keep_choices({"float32 3x5x7 7,1 5,1 5": WIDE})
    monkeypatch.setattr("chainrule.compiler.compile_source", None)  # whoever asks for it fails
    assert build.executable(SOURCE, TRAIN).executable == before.executable


def test_a_bench_measures_programs_and_trains_nothing(folder):
    inputs = {"x": np.ones((4, 32), np.float32), "label": np.zeros(4, np.int64)}
    bench = Bench(SOURCE, TRAIN, inputs, threads=1)
    product, *_ = bench.trials.products()
    start = dict(Model(SOURCE).params)
    tables = [{product.key: choice} for choice in product.candidates(product.choice)[:3]]
    times = bench.measure(tables, product.launches)
    assert len(times) == 3 and min(times) > 0
    assert min(bench.steps(tables)) > 0
    for name, value in bench.store.params.items():
        np.testing.assert_array_equal(value, start[name])


def test_what_is_tuned_is_kept_shown_and_recorded(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.graph").write_text(TEXT)
    speeds = iter(range(10**6, 0, -1))  # each candidate takes less than the one before
    monkeypatch.setattr(Bench, "measure", lambda self, tables, launches: [float(next(speeds)) ** 3 for _ in tables])
    monkeypatch.setattr(tuning, "LEAST", 0.0)
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    monkeypatch.setattr(Bench, "steps", lambda self, tables: [3e3, 2e3])
    asked = bench.Asked("net.graph", [], ["batch=8"], "sgd", "float32", 1)
    tune.tune_model(asked, json=False)
    said = capsys.readouterr().out
    assert "→" not in said and "a step: 3 µs before, 2 after (1.50)" in said
    step = cr.load("net.graph").compile("sgd")
    assert step.runner.executable.tuned == build.choices() != {}
    tuned_losses = [float(step(x=np.ones((4, 32), np.float32), label=np.arange(4))) for _ in range(3)]
    monkeypatch.setattr(Bench, "steps", lambda self, tables: [2e3, 3e3])
    before = dict(build.choices())
    tune.tune_model(asked, json=False)
    assert "nothing kept" in capsys.readouterr().out
    assert build.choices() == before
    (path,) = folder.glob("*.choices")
    path.unlink()
    plain = cr.load("net.graph").compile("sgd")
    losses = [float(plain(x=np.ones((4, 32), np.float32), label=np.arange(4))) for _ in range(3)]
    np.testing.assert_allclose(tuned_losses, losses, rtol=1e-5)


IMAGES = Source(
    """model images():
    dim batch
    input x[batch, 8, 12, 12]
    input y[batch, 16, 12, 12]
    loss = mean((conv2d(x, 16, kernel = 3, pad = 1, bias = false) - y)^2)
""",
    "images.graph",
    "images",
)


def test_a_convolution_is_computed_as_was_measured(folder):
    trials = build.trials(IMAGES, TRAIN)
    ways = {c.key: c for c in trials.convolutions()}
    assert {key.split()[1] for key in ways} == {"convolution", "gradient"}
    inputs = {"x": np.ones((2, 8, 12, 12), np.float32), "y": np.zeros((2, 16, 12, 12), np.float32)}
    losses = []
    for way in (Choice("sums"), Choice("winograd", 2), Choice("winograd", 4)):
        table = dict.fromkeys(ways, way)
        assert dict(trials.program(table).convolutions) == table
        build.keep_choices(table)
        assert build.executable(IMAGES, TRAIN).executable.tuned == table
        step = Model(IMAGES).compile("sgd", rate=0.1, seed=0)
        losses.append([float(step(**inputs)) for _ in range(3)])
    np.testing.assert_allclose(losses[1:], [losses[0], losses[0]], rtol=1e-4)
    bench = Bench(IMAGES, TRAIN, inputs, threads=1)
    (verdict, *_) = tuned(bench.trials.convolutions(build.choices()), build.choices(), bench.measure)
    assert verdict.before == Choice("winograd", 4) and min(verdict.before_ns, verdict.after_ns) > 0
