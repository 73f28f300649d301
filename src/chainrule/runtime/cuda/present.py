"""Which GPU a program runs on: the one that is said to be in use, else the machine's, opened once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache as once
from typing import Any, NoReturn, cast

import lazy_loader

from chainrule.executable import Executable
from chainrule.runtime.cuda.device import Device, DeviceError
from chainrule.runtime.store import Store

driver = lazy_loader.load("chainrule.runtime.cuda.driver", suppress_warning=True)  # loads the driver's library

_used: list[Device] = []


@contextmanager
def use(device: Device) -> Iterator[Device]:
    """Let what is bound meanwhile run on `device`, as on one that interprets."""
    _used.append(device)
    try:
        yield device
    finally:
        _used.remove(device)


def device() -> Device:
    """The device in use. Raises DeviceError where there is none, and says what there is not."""
    return _used[-1] if _used else _opened()


def architecture() -> str | None:
    """What the device in use compiles for, as in "sm_90"; None where there is none."""
    try:
        return device().architecture
    except DeviceError:
        return None


class Absent:
    """A program for a GPU where there is none: to be looked at, saved and exported, and not to be run."""

    threads = None

    def __init__(self, executable: Executable, store: Store) -> None:
        store.admit(executable)
        self.executable, self.store = executable, store

    def run(self, inputs: Mapping[str, Any], *others: Any, **settings: Any) -> NoReturn:
        """Raises DeviceError, which says what there is not."""
        device()
        problem = f"{self.executable.name} was compiled before there was a GPU"
        raise DeviceError(f"{problem}\n  Way out: compile it again, where it is to run")

    def again(self, inputs: Mapping[str, Any]) -> None:
        """There is no shorter way to nothing."""

    def warm(self, **shapes: Any) -> NoReturn:
        """As `run`."""
        self.run({})


@once
def _opened() -> Device:
    try:
        return cast(Device, driver.open_device())
    except ImportError as error:
        problem = f"programs for a GPU are run by cuda-core, which cannot be imported: {error}"
        raise DeviceError(f"{problem}\n  Way out: pip install 'chainrule[cuda]'") from None
