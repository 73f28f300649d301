"""Many cold kernels at once: Numba holds a global lock, so by other processes.

A worker is this module run by itself, one JSON line in and one out for each kernel. It imports nothing of the caller's,
so scripts without a `__main__` guard, notebooks and tests are safe; where no worker starts, or one dies, the caller
compiles. It may be started while the kernels are still being made, for it needs a second to import LLVM and Numba.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chainrule.codegen.objects import Array, Compiled, Job, Parameter, Size, canonical, compile_object, symbol_of
from chainrule.codegen.target import Target

WORTH_A_WORKER = 12000
"""Characters of source: a worker needs a second to start, in which so much is compiled here."""

WORTH_A_START = 48
"""Formulas that make about so much source."""


class Waiting:
    """Kernels that nobody compiles yet; who takes one gets the longest, so that all end at about the same time."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._open = True

    def put(self, symbol: str, job: Job) -> None:
        with self._changed:
            self._jobs[symbol] = job
            self._changed.notify()

    def take(self, *, wait: bool) -> tuple[str, Job] | None:
        """A kernel; None: there is none, and if one waits, there will be none."""
        with self._changed:
            while wait and self._open and not self._jobs:
                self._changed.wait()
            if not self._jobs:
                return None
            symbol = max(self._jobs, key=lambda symbol: len(canonical(self._jobs[symbol])[0]))
            return symbol, self._jobs.pop(symbol)

    def close(self) -> None:
        """Nothing will come any more, and what is there is not wanted."""
        with self._changed:
            self._open = False
            self._jobs.clear()
            self._changed.notify_all()


@dataclass
class Worker:
    """A process that compiles. busy: it has a kernel, and has not answered yet."""

    process: subprocess.Popen[str]
    busy: bool = field(default=False)

    @staticmethod
    def start() -> Worker | None:
        """None: no other process can be had."""
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "chainrule.codegen.workers"]
        try:
            environment = {**os.environ, "PYTHONPATH": path}
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
            )
        except OSError:
            return None
        return Worker(process)

    def ask(self, line: Any) -> Any:
        """What the worker answers. Raises OSError or ValueError where it has died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def compile(self, waiting: Waiting, target: Target, found: dict[str, Compiled]) -> None:
        """Take jobs from `waiting` until it is closed; what is answered goes to `found`."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self.ask({"target": asdict(target)})  # when it answers, it is ready: none waits for one that starts
            while True:
                self.busy = True
                taken = waiting.take(wait=True)
                if taken is None:
                    break
                symbol, job = taken
                described = [_described(p) for p in job.parameters]
                told = self.ask({"source": job.source, "entry": job.entry, "parameters": described})
                compiled = Compiled(told["symbol"], base64.b64decode(told["code"]), tuple(told["externals"]))
                if compiled.symbol == symbol:
                    found[symbol] = compiled
        self.busy = False

    def end(self) -> None:
        """No process of ours outlives its work."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what it did not read
                assert pipe is not None
                pipe.close()


@contextmanager
def ready(formulas: int) -> Iterator[list[Worker]]:
    """Workers that start now, where so many formulas will be worth it; those that nobody took end after."""
    count = _cores() - 1 if formulas >= WORTH_A_START and sys.executable else 0
    started = [worker for _ in range(count) if (worker := Worker.start()) is not None]
    try:
        yield started
    finally:
        for worker in started:
            worker.end()


class Crew:
    """Kernels, compiled by several processes from when each is given; the one that gives them joins in at the end.

    started: workers, already there. workers: how many processes may compile at most, this one included; None: as many
    as are worth it.
    """

    def __init__(self, target: Target, started: Sequence[Worker] = (), workers: int | None = None) -> None:
        self.target, self.most = target, _cores() if workers is None else workers
        self.jobs: dict[str, Job] = {}
        self.waiting = Waiting()
        self.found: dict[str, Compiled] = {}
        self.helping: list[tuple[Worker, threading.Thread]] = []
        for worker in started[: self.most - 1]:
            self._help(worker)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.waiting.close()
        for worker, thread in self.helping:
            if not worker.busy:
                worker.process.kill()
            thread.join()
            worker.end()
        self.helping.clear()

    def _help(self, worker: Worker) -> None:
        thread = threading.Thread(target=worker.compile, args=(self.waiting, self.target, self.found))
        self.helping.append((worker, thread))
        thread.start()

    def give(self, symbol: str, job: Job) -> None:
        """Have `job` compiled; equal kernels have equal symbols, and are compiled once."""
        if symbol not in self.jobs:
            self.jobs[symbol] = job
            self.waiting.put(symbol, job)

    def finish(self) -> dict[str, Compiled]:
        """The object of each kernel that was given, by its symbol."""
        work = sum(len(canonical(job)[0]) for job in self.jobs.values())
        worth = min(self.most - 1, max(work // WORTH_A_WORKER, len(self.helping)))
        for _ in range(worth - len(self.helping) if sys.executable else 0):
            if (worker := Worker.start()) is not None:
                self._help(worker)
        while (taken := self.waiting.take(wait=False)) is not None:
            symbol, job = taken
            self.found[symbol] = compile_object(job, self.target)
        self.__exit__()
        for symbol, job in self.jobs.items():
            if symbol not in self.found:  # a worker that could not start, or died
                self.found[symbol] = compile_object(job, self.target)
        return {symbol: self.found[symbol] for symbol in self.jobs}


def compile_objects(
    jobs: Sequence[Job], target: Target, workers: int | None = None, started: Sequence[Worker] = ()
) -> list[Compiled]:
    """The objects of all `jobs`, in order; equal kernels are compiled once. workers, started: as a crew has them."""
    symbols = [symbol_of(job, target) for job in jobs]
    with Crew(target, started, workers) as crew:
        for symbol, job in zip(symbols, jobs, strict=True):
            crew.give(symbol, job)
        found = crew.finish()
    return [found[symbol] for symbol in symbols]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _described(parameter: Parameter) -> Any:
    return asdict(parameter) if isinstance(parameter, Array) else None


def _read(told: Any) -> Job:
    parameters: tuple[Parameter, ...] = tuple(
        Size() if p is None else Array(p["element"], tuple(p["shape"]), p["scratch"]) for p in told["parameters"]
    )
    return Job(told["source"], told["entry"], parameters)


def main() -> None:
    """A worker: the target on the first line of the input, then a kernel on each; an answer for each."""
    target = Target(**json.loads(sys.stdin.readline() or "null")["target"])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        compiled = compile_object(_read(json.loads(line)), target)
        code = base64.b64encode(compiled.code).decode()
        print(json.dumps({"symbol": compiled.symbol, "code": code, "externals": compiled.externals}), flush=True)


if __name__ == "__main__":
    main()
