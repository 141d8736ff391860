"""Why a virtual machine has failed: what its processes and its console said last, for the error message of whoever
started it.

A supervisor answers those who wait for it. For who asks when it has gone, it leaves a file in the sandbox's directory,
and the directory; one that was killed leaves its logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import NotRunningError
from runvm.linux import files
from runvm.log import printable

if TYPE_CHECKING:
    from runvm.sandbox.registry import Sandbox

_FAILURE = "failure"
_LOGS = (
    ("supervisor", "supervisor.log"),
    ("vmm", "vmm.log"),
    ("virtiofsd", "virtiofsd.log"),
    ("console", "console.log"),
)
_LINES = 12
_BYTES = 8192  # of a log: QEMU says the same of each queue of a share whose daemon has gone


def last_lines(directory: str, *, console: str = "") -> str:
    """The last lines of a sandbox's logs and of its *console*, each after the name of who said it; one that was said
    again and again stands once."""
    found = []
    for name, file in _LOGS:
        text = files.tail(f"{directory}/{file}", _BYTES)
        if name == "console" and console:
            text = console
        text = printable(text.replace("\r", ""))
        lines = dict.fromkeys(line for line in text.splitlines() if line.strip())
        found += [f"{name}: {line}" for line in list(lines)[-_LINES:]]
    return "\n".join(found)


def leave(directory: str, text: str) -> None:
    """Leave *text*, whose first line is the reason of the end, for explained(). Raises OSError."""
    with open(f"{directory}/{_FAILURE}", "w", opener=files.private) as file:
        file.write(text)


def explained(error: NotRunningError, sandbox: Sandbox) -> NotRunningError:
    """*error* of a start in *sandbox*, with its cause where it has none yet: nobody is there any more to tell it."""
    if error.details or error.do:
        return error
    reason, details = cause(sandbox)
    return NotRunningError(reason or "the virtual machine has ended", details)


def cause(sandbox: Sandbox) -> tuple[str, str]:
    """Why *sandbox* has ended before its first container was started, and what was said last; '' where nobody left
    that."""
    reason, _, details = files.tail(f"{sandbox.directory}/{_FAILURE}", 32768).partition("\n")
    return reason, details if reason else last_lines(sandbox.directory)
