"""Threads that walk one tape together give the bits that one thread gives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.errors import ChainruleError
from chainrule.runtime import tape
from chainrule.runtime import threads as threads_module
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
from chainrule.runtime.tape import barriers, divide
from chainrule.runtime.threads import available_cores, thread_count
from tests.runtime.programs import chain, regression, walker

spans = st.lists(st.builds(lambda lo, n: (lo, lo + n), st.integers(0, 30), st.integers(0, 8)), max_size=3)
launches = st.lists(st.tuples(st.tuples(spans, spans), st.integers(1, 3)), max_size=12)


def meet(a, b):
    return any(lo < other_hi and other_lo < hi for lo, hi in a for other_lo, other_hi in b)


@given(case=launches)
@settings(max_examples=100)
def test_whatever_depends_on_another_threads_work_has_a_barrier_between(case):
    accesses, shares = [one for one, _ in case], [share for _, share in case]
    meets = barriers(accesses, shares)
    for late in range(len(case)):
        for early in range(late):
            (reads, writes), (reads0, writes0) = accesses[late], accesses[early]
            depends = meet(reads, writes0) or meet(writes, writes0) or meet(writes, reads0)
            if depends and (shares[late] > 1 or shares[early] > 1):
                assert any(meets[early + 1 : late + 1])


def test_independent_launches_and_those_of_one_thread_need_no_barrier():
    one, two = (([(0, 8)], [(64, 72)])), (([(128, 136)], [(192, 200)]))
    after = ([(64, 72)], [(256, 264)])
    assert barriers([one, two], [4, 4]) == [False, False]
    assert barriers([one, after], [1, 1]) == [False, False]
    assert barriers([one, after], [4, 1]) == [False, True]
    assert barriers([one, two, after], [4, 4, 4]) == [False, False, True]


def test_reused_memory_is_a_dependence():
    reader, writer = ([(0, 64)], [(64, 128)]), ([(256, 320)], [(32, 96)])
    assert barriers([reader, writer], [2, 2]) == [False, True]


def test_only_work_that_pays_is_divided():
    assert divide([100.0, 5_000.0, 1e6, 1e6], [50, 50, 50, 3], 8) == [1, 2, 8, 3]


def results(program, threads, **inputs):
    executable, objects = program
    store = Store(5)
    runner = Runner(executable, objects, store, walker(), threads=threads)
    found = [runner.run(inputs) for _ in range(3)]
    return found, {name: store.params[name] for name in store.params}, runner


def test_the_number_of_threads_changes_no_bit():
    x, y = np.random.default_rng(1).normal(size=(2, 1000, 3)).astype(np.float32)
    alone, params, _ = results(regression(cost=100.0), 1, x=x, y=y)
    for threads in (2, 3, 5):
        found, others, runner = results(regression(cost=100.0), threads, x=x, y=y)
        assert runner.last.tape.threads == threads
        for a, b in zip(alone, found, strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in a)
        assert all(np.array_equal(params[name], others[name]) for name in params)


def links(count, x):
    """What `chain` computes, in its order of roundings."""
    half = np.float32(0.5)
    a, b = half * x + x, None
    for k in range(count):
        if k % 2 == 0:
            b = half * a + x
        else:
            a = half * b + x
    return a, b


@pytest.mark.parametrize("threads", [2, 4])
def test_a_thousand_barriers_in_a_row_hold(threads):
    executable, objects = chain(300, 64, cost=1e5)
    runner = Runner(executable, objects, Store(0), walker(), threads=threads)
    for turn in range(8):
        x = np.random.default_rng(turn).normal(size=64).astype(np.float32)
        found = runner.run({"x": x})
        a, b = links(300, x)
        assert np.allclose(found["a"], a, rtol=1e-6) and np.allclose(found["b"], b, rtol=1e-6)
    assert runner.last.tape.entries[:, 4].sum() >= 299


def test_workers_that_do_not_come_are_not_waited_for(monkeypatch):
    """As where the system gives their cores to others: the step takes what it takes on one thread."""
    monkeypatch.setattr(threads_module, "_teams", {})
    monkeypatch.setattr(threads_module, "_live", lambda *_: None)
    x, y = np.random.default_rng(1).normal(size=(2, 1000, 3)).astype(np.float32)
    alone, params, _ = results(regression(cost=100.0), 1, x=x, y=y)
    found, others, runner = results(regression(cost=100.0), 3, x=x, y=y)
    assert runner.last.tape.threads == 3
    for a, b in zip(alone, found, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert all(np.array_equal(params[name], others[name]) for name in params)


def test_a_barrier_left_out_is_noticed(monkeypatch):
    """The law above would catch it: a dependence between divided launches without one."""
    accesses = [([(0, 64)], [(64, 128)]), ([(64, 128)], [(128, 192)])]
    assert any(barriers(accesses, [2, 2]))
    monkeypatch.setattr(tape.Since, "touches", lambda *_: False)
    assert not any(barriers(accesses, [2, 2]))


def test_many_steps_in_one_call_are_the_steps_one_by_one():
    x, y = np.random.default_rng(2).normal(size=(2, 7, 20, 3)).astype(np.float32)
    for threads in (1, 3):
        executable, objects = regression(cost=500.0)
        one, many = Store(1), Store(1)
        runner = Runner(executable, objects, one, walker(), threads=threads)
        singly = [runner.run({"x": x[k], "y": y[k]}) for k in range(7)]
        found = Runner(executable, objects, many, walker(), threads=threads).run({"x": x, "y": y}, steps=7)
        for name in ("s", "loss", "count"):
            assert np.array_equal(found[name], np.stack([one[name] for one in singly]))
        assert np.array_equal(one.params["w"], many.params["w"])
        assert list(found["count"]) == [1, 2, 3, 4, 5, 6, 7] and many.step == 7


def test_steps_from_several_python_threads_come_one_after_another():
    executable, objects = regression(cost=500.0)
    store = Store(1)
    runner = Runner(executable, objects, store, walker(), threads=2)
    x, y = np.random.default_rng(2).normal(size=(2, 50, 3)).astype(np.float32)
    counts = []

    def steps():
        for _ in range(100):
            counts.append(int(runner.run({"x": x, "y": y})["count"]))

    callers = [threading.Thread(target=steps) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(counts) == list(range(1, 401)) and store.step == 400


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_its_own_workers():
    executable, objects = regression(cost=500.0)
    runner = Runner(executable, objects, Store(1), walker(), threads=2)
    x, y = np.random.default_rng(2).normal(size=(2, 50, 3)).astype(np.float32)
    runner.run({"x": x, "y": y})
    assert runner.last.tape.threads == 2
    expected = (x - y).sum(1)
    child = os.fork()
    if child == 0:
        right = all(np.allclose(runner.run({"x": x, "y": y})["s"], expected, atol=1e-5) for _ in range(50))
        os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.allclose(runner.run({"x": x, "y": y})["s"], expected, atol=1e-5)


ENDS = """
import sys
sys.path[:0] = [{source!r}, {root!r}]
import numpy as np
from tests.runtime.programs import regression, walker
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
runner = Runner(*regression(cost=1e4), Store(1), walker(), threads=3)
x = np.ones((30, 3), np.float32)
runner.run({{"x": x, "y": x}})
assert runner.last.tape.threads == 3
"""


def test_a_process_with_workers_ends_in_peace():
    root = Path(__file__).parents[2]
    text = ENDS.format(source=str(root / "src"), root=str(root))
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", text], timeout=60).returncode == 0


def test_the_number_of_threads_comes_from_argument_environment_or_cores(monkeypatch):
    monkeypatch.delenv("CHAINRULE_THREADS", raising=False)
    assert thread_count() == len(available_cores()) and thread_count(3) == 3
    monkeypatch.setenv("CHAINRULE_THREADS", "5")
    assert thread_count() == 5 and thread_count(2) == 2
    for bad in ("0", "many", "-1", "1000"):
        monkeypatch.setenv("CHAINRULE_THREADS", bad)
        with pytest.raises(ChainruleError, match="Way out"):
            thread_count()
