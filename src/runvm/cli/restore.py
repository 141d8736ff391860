"""`runvm restore`: see checkpoint.py."""

from __future__ import annotations

from runvm.cli.checkpoint import RESTORE as COMMAND
from runvm.cli.checkpoint import run

__all__ = ["COMMAND", "run"]
