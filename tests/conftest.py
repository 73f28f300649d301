"""What every test runs under: a cache of compiled kernels of its own, and repeatable drawn examples."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# Seconds of compiling in the first example that needs a kernel are no reason to fail.
settings.register_profile(
    "chainrule",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("chainrule")


def pytest_configure(config: pytest.Config) -> None:
    """Kernels go to a folder of this run, which its workers share: a user's cache must neither help nor suffer."""
    if "CHAINRULE_CACHE" in os.environ:
        return
    folder = tempfile.TemporaryDirectory(prefix="chainrule-tests-", ignore_cleanup_errors=True)
    os.environ["CHAINRULE_CACHE"] = folder.name

    def clean() -> None:
        del os.environ["CHAINRULE_CACHE"]
        folder.cleanup()

    config.add_cleanup(clean)
