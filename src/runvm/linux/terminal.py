"""A terminal's size (ioctl_tty(2)) and settings (termios(3)), on the host and in the guest."""

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


def keep_newlines(fd: int) -> None:
    """Have the terminal pass LF on as it is, instead of making it CR LF. Raises OSError."""
    _change_output(fd, 0, termios.ONLCR)


def make_raw(fd: int) -> None:
    """Pass everything on as it is, but for what is printed: that is laid out as before. Raises OSError."""
    import tty

    output = termios.tcgetattr(fd)[1]
    tty.setraw(fd, termios.TCSANOW)  # what has been typed already is for the process
    _change_output(fd, output & (termios.OPOST | termios.ONLCR), 0)


def _change_output(fd: int, add: int, take: int) -> None:
    try:
        settings = termios.tcgetattr(fd)
        settings[1] = settings[1] & ~take | add
        termios.tcsetattr(fd, termios.TCSANOW, settings)
    except termios.error as error:
        raise OSError(*error.args) from error
