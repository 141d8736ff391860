"""What a container says to its $NOTIFY_SOCKET, passed on to the host's: for systemd or conmon (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from runvm.log import printable

_PASSED = ("READY", "RELOADING", "STOPPING", "STATUS", "ERRNO", "BUSERROR", "WATCHDOG", "EXTEND_TIMEOUT_USEC")
"""Not MAINPID, which would be a number of the guest's, nor what belongs to descriptors."""


def passed(text: str) -> str:
    """The lines of a container's message that mean something on the host, where `systemctl status` shows them."""
    return "\n".join(printable(line) for line in text.split("\n") if line.partition("=")[0] in _PASSED)


class Notifier:
    """The socket at *path* on the host, which is found now: its name may be long, and go. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._target = os.open(path, os.O_PATH | os.O_CLOEXEC)

    def say(self, text: str) -> None:
        """Pass a message on; nobody waits for it to arrive."""
        text = passed(text)
        if text:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender, suppress(OSError):
                sender.sendto(text.encode(errors="replace"), f"/proc/self/fd/{self._target}")

    def close(self) -> None:
        """No more is passed on."""
        os.close(self._target)
