"""Kernels are compiled by several processes, to the same bytes; none of them outlives the work."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pytest

from chainrule.codegen import workers
from chainrule.codegen.objects import CompileError, compile_object, symbol_of
from chainrule.codegen.target import host
from chainrule.codegen.workers import Crew, Waiting, Worker, compile_objects, ready
from tests.codegen.test_objects import HIDDEN


def variants(count):
    """As many kernels, of which three are different."""
    return [replace(HIDDEN, source=HIDDEN.source.replace("float32(0)", f"float32({k % 3})")) for k in range(count)]


@pytest.fixture
def worker():
    made = Worker.start()
    yield made
    made.end()


def test_several_processes_make_the_same_bytes(monkeypatch):
    jobs = variants(6)
    alone = compile_objects(jobs, host(), workers=1)
    monkeypatch.setattr(workers, "WORTH_A_WORKER", 100)
    assert compile_objects(jobs, host(), workers=2) == alone
    assert alone[0] is alone[3]


def test_a_worker_compiles_while_the_caller_does_something_else(worker):
    jobs = variants(3)
    expected = {symbol_of(job, host()): compile_object(job, host()) for job in jobs}
    with Crew(host(), [worker], workers=2) as crew:
        for symbol, job in zip(expected, jobs, strict=True):
            crew.give(symbol, job)
        until = time.monotonic() + 60
        while crew.found != expected and time.monotonic() < until:  # though nobody asks for them
            time.sleep(0.01)
        assert crew.found == expected
        assert crew.finish() == expected
    assert not worker.busy
    assert worker.process.poll() is not None


def test_a_crew_ends_where_its_caller_fails(worker):
    crew = Crew(host(), [worker], workers=2)
    ((_, thread),) = crew.helping
    with pytest.raises(ZeroDivisionError), crew:
        crew.give("kernel", 1 // 0)
    assert not thread.is_alive()
    assert worker.process.poll() is not None


def test_the_longest_kernel_is_taken_first_and_nothing_after_the_end():
    waiting = Waiting()
    long = replace(HIDDEN, source=HIDDEN.source.replace("float32(0)", "float32(0.125)"))
    waiting.put("short", HIDDEN)
    waiting.put("long", long)
    assert waiting.take(wait=True) == ("long", long)
    waiting.close()
    assert waiting.take(wait=True) is None


def test_where_no_worker_starts_the_caller_compiles(monkeypatch):
    monkeypatch.setattr(workers, "WORTH_A_WORKER", 100)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    jobs = variants(3)
    assert [c.symbol for c in compile_objects(jobs, host(), workers=2)] == [symbol_of(job, host()) for job in jobs]


@pytest.mark.parametrize("dies", ["before", "with a job"])
def test_what_a_dead_worker_leaves_is_compiled_by_the_caller(worker, dies, monkeypatch):
    jobs = variants(3)
    if dies == "before":
        worker.end()
    else:
        monkeypatch.setattr(worker, "ask", lambda line: {} if "target" in line else worker.end() or {}["symbol"])
    found = compile_objects(jobs, host(), workers=2, started=[worker])
    assert [c.symbol for c in found] == [symbol_of(job, host()) for job in jobs]


def test_what_does_not_compile_is_said_whoever_tried(worker):
    wrong = replace(HIDDEN, source=HIDDEN.source.replace("b[j]", "b[j, 0]"))
    with pytest.raises(CompileError, match="graphs/mlp.graph:9"):
        compile_objects([wrong, *variants(3)], host(), workers=2, started=[worker])
    assert worker.process.poll() is not None


def test_workers_that_nobody_needed_end(monkeypatch):
    monkeypatch.setattr(workers, "_cores", lambda: 3)
    with ready(workers.WORTH_A_START - 1) as none:
        assert none == []
    with ready(workers.WORTH_A_START) as started:
        assert len(started) == 2
        assert all(worker.process.poll() is None for worker in started)
    assert all(worker.process.poll() is not None for worker in started)
