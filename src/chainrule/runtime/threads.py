"""Who walks the tape: the compiled walker, and the persistent workers that help it.

A worker is a Python thread that enters the walker once and stays there, without the GIL, until the process ends. It
spins some 5 µs for work, then yields its core, then sleeps.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ParamSpec, cast

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.executable import STEP_SYMBOL, TAKE_SYMBOL, WALKER_SYMBOL, Control, Kernel, Pool
from chainrule.runtime.buffers import address, aligned
from chainrule.runtime.cache import digest
from chainrule.runtime.load import load
from chainrule.runtime.tape import Words

Walk = Callable[[int, int], int]
P = ParamSpec("P")

SPIN = 5_000  # nanoseconds
YIELDS = 100
MOST = 256  # threads


@dataclass(frozen=True)
class Walker:
    """The compiled interpreter: walk(control block or pool, thread), without the GIL; see `codegen.walker`."""

    walk: Walk
    method: Method
    taking: Method

    @classmethod
    def load(cls, data: bytes) -> Walker:
        """The walker in the object file `data`."""
        kernels = [Kernel(symbol, digest(data)) for symbol in (WALKER_SYMBOL, STEP_SYMBOL, TAKE_SYMBOL)]
        walk, step, take = load(kernels, {digest(data): data})
        word = ctypes.c_int64
        method, taking = Method(b"step", step, METH_NOARGS, None), Method(b"take", take, METH_O, None)
        return cls(ctypes.CFUNCTYPE(word, word, word)(walk), method, taking)

    def step(self, control: int, release: bool) -> Callable[[], int]:
        """A function that walks the block at `control`. release: let other Python threads run meanwhile."""
        return cast(Callable[[], int], _new_function(ctypes.byref(self.method), control + release, None))

    def take(self, block: int) -> Callable[[Mapping[str, object]], int]:
        """A function that takes inputs from a dict as the block of `Take`s says, then walks; -1 if they do not fit."""
        return cast(Callable[[Mapping[str, object]], int], _new_function(ctypes.byref(self.taking), block, None))


class Method(ctypes.Structure):
    """PyMethodDef of Python's stable C interface."""

    _fields_ = (("name", ctypes.c_char_p), ("call", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


METH_NOARGS, METH_O = 4, 8
_new_function = ctypes.pythonapi.PyCFunction_NewEx
_new_function.restype = ctypes.py_object
_new_function.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)


@dataclass(eq=False)
class Team:
    """Thread 0 (whoever calls) and its workers. `lock`: one tape at a time. `alive`: no fork left it behind."""

    walker: Walker
    threads: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    shared: Words = field(init=False)
    workers: list[threading.Thread] = field(default_factory=list)
    alive: bool = True

    def __post_init__(self) -> None:
        self.shared = aligned(8 * Pool.WORDS).view(np.int64)
        cores = available_cores()
        # where threads share a core, a spinning one only keeps the other from its work
        self.shared[Pool.SPINS] = spins(self.walker) if self.threads <= len(cores) else 0
        self.shared[Pool.YIELDS] = YIELDS
        for thread in range(1, self.threads):
            # the first core is left to the caller, who is not ours to pin
            core = cores[thread % len(cores)]
            worker = threading.Thread(
                target=_live, args=(self.walker, self.address, thread, core), name=f"chainrule-{thread}", daemon=True
            )
            worker.start()
            self.workers.append(worker)

    @property
    def address(self) -> int:
        """Where the shared words are."""
        return address(self.shared)

    def stop(self) -> None:
        """End the workers."""
        self.alive = False
        if self.workers:
            self.walker.walk(self.address, -self.threads)
            for worker in self.workers:
                worker.join(1.0)
            self.workers.clear()


_teams: dict[int, Team] = {}
_teams_lock = threading.Lock()


def team(walker: Walker, threads: int) -> Team:
    """The team of this process with at least `threads` threads; made where there is none."""
    with _teams_lock:
        found = min((t for size, t in _teams.items() if size >= threads), key=lambda t: t.threads, default=None)
        if found is None:
            found = _teams[threads] = Team(walker, threads)
        return found


def together(walker: Walker, threads: int, control: Words, call: Callable[P, int]) -> Callable[P, int]:
    """`call`, which walks `control`, with the help of this process's team; after a fork, of the child's own."""
    known: list[Team] = []

    def called(*args: P.args, **named: P.kwargs) -> int:
        if not known or not known[-1].alive:
            known[:] = [team(walker, threads)]
            control[Control.POOL] = known[-1].address
        with known[-1].lock:
            return call(*args, **named)

    return called


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def thread_count(threads: int | None = None) -> int:
    """`threads`, else CHAINRULE_THREADS, else one for each core that this process may use."""
    if threads is None:
        text = os.environ.get("CHAINRULE_THREADS", "").strip()
        if not text:
            return min(len(available_cores()), MOST)
        if not (text.isascii() and text.isdigit()):
            raise ChainruleError(f"CHAINRULE_THREADS is {text!r}\n  Way out: a number from 1 to {MOST}")
        threads = int(text)
    if not isinstance(threads, int) or not 1 <= threads <= MOST:
        raise ChainruleError(f"{threads!r} threads were asked for\n  Way out: a number from 1 to {MOST}")
    return threads


def spins(walker: Walker) -> int:
    """How many looks at a word take SPIN nanoseconds: a pause is 10 to 150 cycles, by the CPU."""
    times = []
    for _ in range(3):
        start = time.perf_counter_ns()
        walker.walk(0, -500)
        times.append(time.perf_counter_ns() - start)
    return max(10, 500 * SPIN // max(min(times), 1))


def _live(walker: Walker, pool: int, thread: int, core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # where that is not allowed, the system places it
            os.sched_setaffinity(0, {core})  # of this thread alone
    walker.walk(pool, thread)


def _stop_all() -> None:
    # a worker in compiled code must be gone before the interpreter takes down its memory
    for one in list(_teams.values()):
        one.stop()
    _teams.clear()


def _after_fork() -> None:
    # threads do not survive a fork: the child starts its own
    global _teams_lock
    _teams_lock = threading.Lock()
    for one in _teams.values():
        one.alive = False
        one.workers.clear()
    _teams.clear()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
