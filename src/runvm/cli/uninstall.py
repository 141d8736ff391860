"""`runvm uninstall`: see install.py."""

from __future__ import annotations

from runvm.cli.install import UNINSTALL as COMMAND
from runvm.cli.install import run

__all__ = ["COMMAND", "run"]
