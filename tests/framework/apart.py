"""Runs a piece of a test in a mount namespace of its own: its mounts are nobody else's, and go with it."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

from runvm.linux import process, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable


def apart(action: Callable[[], object]) -> None:
    """Run *action* in a child whose mounts are all private. Raises AssertionError with what it raised."""
    reader, writer = os.pipe()

    def child() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
            action()
        except BaseException:
            os.write(writer, traceback.format_exc().encode())

    pid = process.fork(child)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        failure = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert not failure, failure
