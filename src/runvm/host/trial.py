"""Tries things out for the doctor: programs under a deadline, system calls in a child whose namespaces die with it."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from runvm import errors
from runvm.linux.command import PATH

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_OUTPUT = 4096


def find(program: str) -> str:
    """The path of *program*, '' if there is none; in sbin too, which a user's PATH may lack."""
    import shutil

    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{PATH}") or ""


def in_child(attempt: Callable[[], None], *, timeout: float = 20.0) -> str:
    """Run *attempt* in a forked child; '' if it went well, else what it raised. All namespaces it makes end with it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _attempt_and_exit(attempt, writer)
    os.close(writer)
    try:
        return _collect(reader, pid, time.monotonic() + timeout, timeout)
    finally:
        os.close(reader)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(pid, 0)


def _attempt_and_exit(attempt: Callable[[], None], writer: int) -> None:
    words = "ended early"
    try:
        attempt()
        words = ""
    except OSError as error:
        words = errors.words(error)
    except Exception as error:  # a process edge: whatever it is, the parent reports it
        words = str(error) or type(error).__name__
    finally:
        os.write(writer, words.encode(errors="replace")[:_MAX_OUTPUT] + b"\n")
        os._exit(0)


def _collect(reader: int, pid: int, deadline: float, timeout: float) -> str:
    """What the child wrote, up to the newline that it ends with."""
    import select

    words = b""
    while not words.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return f"no answer within {timeout:.0f} s"
        chunk = os.read(reader, _MAX_OUTPUT + 1)
        if not chunk:
            return f"process {pid} died"
        words += chunk
    return words.decode(errors="replace").strip()
