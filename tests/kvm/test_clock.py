"""A guest's clock, which under KVM is the processor's: right after a restore, and when the host's clock jumps."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.process import Process
    from framework.runtime import Box, Container

RIGHT_S = 0.010
# gettimeofday(2), number 96: perl-base has no Time::HiRes
_TELL = '$| = 1; while (<STDIN>) { $b = "\\0" x 16; syscall(96, $b, 0); printf "%d.%06d\\n", unpack("qq", $b) }'


@contextmanager
def teller(container: Container) -> Iterator[Process]:
    """A process in the container that tells the time whenever it is sent a line."""
    argv = ("exec", container.id, "perl", "-e", _TELL)
    running = container.runtime.start(*argv, stdin=b"\n")
    try:
        yield running
    finally:
        running.kill()


def wrong_by(running: Process, questions: int = 20) -> float:
    """By how much the container's clock is wrong at least: an answer tells the time to half of what it took."""
    assert running.popen.stdin is not None
    assert running.popen.stdout is not None
    found = []
    for _ in range(questions):
        asked = time.time()
        running.popen.stdin.write(b"\n")
        running.popen.stdin.flush()
        shown = float(running.popen.stdout.readline())
        took = time.time() - asked
        found.append((took, shown - asked - took / 2))
    took, difference = min(found)
    return max(0.0, abs(difference) - took / 2)


@pytest.fixture
def container(box: Box) -> Container:
    """A running container with perl."""
    made = box.idle()
    rootfs.install_perl(made.bundle.rootfs)
    return made.launch()


def test_the_clock_is_right_after_a_restore(container: Container) -> None:
    """To 10 ms, though the template is of any age."""
    with teller(container) as running:
        wait_until(lambda: wrong_by(running) < RIGHT_S, timeout=5, what="the guest's clock to be right")


@pytest.mark.throwaway
def test_the_clock_follows_the_hosts(container: Container) -> None:
    """The host's is set an hour ahead, and back: so is the guest's, within moments."""
    with teller(container) as running:
        wait_until(lambda: wrong_by(running) < RIGHT_S, timeout=5, what="the guest's clock to be right")
        for step in (3600, -3600):
            time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
            wait_until(lambda: wrong_by(running) < RIGHT_S, timeout=5, what="the guest's clock to follow")
