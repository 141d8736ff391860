"""What makes a guest this VM and no other, though its memory is a copy: clock, random state, machine id."""

from __future__ import annotations

import fcntl
import os
import struct
import time

from runvm.linux import files

# linux/random.h
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


def become(clock_ns: int, entropy: bytes) -> None:
    """Set the clock to *clock_ns* since the epoch, mix *entropy* in, draw a machine id. Raises OSError."""
    _reseed(entropy)
    time.clock_settime_ns(time.CLOCK_REALTIME, clock_ns)
    files.write("/etc/machine-id", os.urandom(16).hex() + "\n", make=True)


def _reseed(seed: bytes) -> None:
    """Mix *seed* into the kernel's generator and reseed it, so that no two clones of a template share a stream
    (random(4))."""
    fd = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)
