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
from collections import deque
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

Jobs = deque[tuple[str, Job]]


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

    def compile(self, waiting: Jobs, target: Target, found: dict[str, Compiled]) -> None:
        """Take jobs from `waiting` until none is left; what is answered goes to `found`."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            self.ask({"target": asdict(target)})  # when it answers, it is ready: none waits for one that starts
            while True:
                self.busy = True
                symbol, job = waiting.popleft()
                described = [_described(p) for p in job.parameters]
                told = self.ask({"source": job.source, "entry": job.entry, "parameters": described})
                compiled = Compiled(told["symbol"], base64.b64decode(told["code"]), tuple(told["externals"]))
                if compiled.symbol == symbol:
                    found[symbol] = compiled
                self.busy = False
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


def compile_objects(
    jobs: Sequence[Job], target: Target, workers: int | None = None, started: Sequence[Worker] = ()
) -> list[Compiled]:
    """The objects of all `jobs`, in order; equal kernels are compiled once.

    workers: processes, this one included; None: as many as are worth it. started: some of them, already there.
    """
    symbols = [symbol_of(job, target) for job in jobs]
    distinct = dict(zip(symbols, jobs, strict=True))
    # the longest first, and each process takes the next when it is free: they end at about the same time
    waiting: Jobs = deque(sorted(distinct.items(), key=lambda item: -len(canonical(item[1])[0])))
    work = sum(len(canonical(job)[0]) for job in distinct.values())
    count = min(_cores() if workers is None else workers, max(1 + work // WORTH_A_WORKER, 1 + len(started))) - 1
    new = [Worker.start() for _ in range(count - len(started))] if sys.executable else []
    helping = [*started[:count], *(worker for worker in new if worker is not None)]
    found: dict[str, Compiled] = {}
    threads = [threading.Thread(target=worker.compile, args=(waiting, target, found)) for worker in helping]
    for thread in threads:
        thread.start()
    try:
        while waiting:
            with contextlib.suppress(IndexError):  # a worker took the last one
                symbol, job = waiting.popleft()
                found[symbol] = compile_object(job, target)
    finally:
        waiting.clear()
        for worker, thread in zip(helping, threads, strict=True):
            if not worker.busy:
                worker.process.kill()
            thread.join()
            worker.end()
    for symbol, job in distinct.items():
        if symbol not in found:  # a worker that could not start, or died
            found[symbol] = compile_object(job, target)
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
