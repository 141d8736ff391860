"""A terminal's size (ioctl_tty(2)), on the host and in the guest."""

from __future__ import annotations

import fcntl
import struct
import termios

_SIZE = struct.Struct("HHHH")


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set the size; beyond what a terminal can have, the low 16 bits count. Raises OSError."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, _SIZE.pack(rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def get_size(fd: int) -> tuple[int, int]:
    """(rows, columns). Raises OSError."""
    rows, columns, _, _ = _SIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_SIZE.size)))
    return rows, columns
