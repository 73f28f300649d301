"""Entries that no row expresses, and why."""

from __future__ import annotations

UNSAID: dict[str, str] = {}
