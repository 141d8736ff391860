"""The version of the protocol between commands, shims and supervisor: an upgrade of runvm meets virtual machines that
an older one has started.

A command that connects says its own in a frame before all others; a supervisor's is in the sandbox's directory, so that
nobody has to wait for it. Raise PROTOCOL when a message or a frame changes.
"""

from __future__ import annotations

from runvm import __version__

PROTOCOL = 4
"""1: runvm 0.1, which told no version."""


def own() -> bytes:
    """The payload of the frame that tells this runvm's."""
    return f"{PROTOCOL} {__version__}".encode()


def parse(payload: bytes) -> tuple[int, str]:
    """(protocol, release) of such a payload; (1, '0.1') for one that makes no sense."""
    number, _, release = payload.decode(errors="replace")[:64].partition(" ")
    if not number.isascii() or not number.isdigit() or not release.isprintable():
        return 1, "0.1"
    return int(number), release


def mismatch(payload: bytes) -> str:
    """What to tell a command whose version is *payload*; '' where it is this one's."""
    number, release = parse(payload)
    if number == PROTOCOL:
        return ""
    return f"the virtual machine was started by runvm {__version__}, and this command is of runvm {release}"
