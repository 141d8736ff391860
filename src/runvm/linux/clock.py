"""The clock that tells the time of day: moved, and watched for being moved."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

# sys/timerfd.h, timerfd_create(2)
_TFD_TIMER_ABSTIME = 1
_TFD_TIMER_CANCEL_ON_SET = 2
_FAR = 1 << 32
"""A moment that is far away, in seconds since the epoch."""
_SLEWED_NS = 100_000_000
"""What adjtime() takes back within some three minutes."""

_libc = ctypes.CDLL(None, use_errno=True)


class _TimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class _TimeValue(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))


class ClockChanges:
    """A descriptor that is readable once the clock has jumped: it was set, or the machine has slept
    (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). Raises OSError."""

    def __init__(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = _check(_libc.timerfd_create(time.CLOCK_REALTIME, flags), "timerfd_create")
        self._arm()

    def fileno(self) -> int:
        """For a loop."""
        return self._fd

    def take(self) -> None:
        """Wait for the next jump."""
        with suppress(OSError):  # ECANCELED is what tells a jump
            os.read(self._fd, 8)
        self._arm()

    def close(self) -> None:
        """Once."""
        os.close(self._fd)

    def _arm(self) -> None:
        spec = _TimerSpec(0, 0, _FAR, 0)
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        _check(_libc.timerfd_settime(self._fd, flags, ctypes.byref(spec), None), "timerfd_settime")


def move(by_ns: int) -> None:
    """Move the clock; where it is a little ahead it runs slower for a while, since no program expects an earlier time
    than before (adjtime(3)). Raises OSError."""
    if -_SLEWED_NS < by_ns < 0:
        delta = _TimeValue(0, by_ns // 1000)
        _check(_libc.adjtime(ctypes.byref(delta), None), "adjtime")
    else:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + by_ns)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
