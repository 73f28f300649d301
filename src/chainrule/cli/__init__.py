"""The `chainrule` command: `app` says what can be asked, `models` and `training` do it, `output` shows it."""

from chainrule.cli.app import main

__all__ = ["main"]
