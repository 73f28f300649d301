"""Which GPU a program runs on: the one that is said to be in use, else the machine's, opened once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once
from typing import cast

import lazy_loader

from chainrule.runtime.cuda.device import Device, DeviceError

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
    except (DeviceError, ImportError):
        return None


@once
def _opened() -> Device:
    return cast(Device, driver.open_device())
