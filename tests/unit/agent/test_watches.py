"""What the agent knows of who watches files, and how it tells them."""

from __future__ import annotations

import pytest

from runvm.agent import replay, watch_probe, watches

LINE = "inotify wd:2 ino:de043 sdev:20 mask:fff ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:0102"


def test_a_watch_as_the_kernel_shows_it() -> None:
    """The file system, and the handle with its type."""
    assert watches.parse(LINE) == watches.File(0x20, b"\x81\0\0\0\x01\x02")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "pos:\t0",
        "fanotify ino:1 sdev:2",
        "inotify wd:1 ino:2 sdev:3 mask:fff",
        LINE.replace("0102", "xy"),
        LINE + "1",
    ],
)
def test_other_lines_are_no_watches(line: str) -> None:
    """Those of other descriptors, and of file systems without handles."""
    assert watches.parse(line) is None


def test_who_has_called_the_probe() -> None:
    """By the lines of the trace, whatever a thread is called."""
    lines = (
        b"         python3-159     [000] ...1.    12.345678: watch: (x64_sys_call+0x1/0x2 <- y)\n"
        b"  a-5 [001] b-77 [001] ...1. 12.4: watch: (x <- y)\n"
        b" node: watch-8 [000] ...1. 12.4: watch32: (x <- y)\n"
        b"noise\n"
    )
    assert watch_probe.callers(lines) is not None
    assert 159 in (watch_probe.callers(lines) or ())
    assert 77 in (watch_probe.callers(lines) or ())
    assert watch_probe.callers(b"CPU:0 [LOST 12 EVENTS]\n" + lines) is None


@pytest.mark.parametrize(
    ("mask", "there", "expected"),
    [
        (0x10A, True, [0x100, 0x2, 0x8]),
        (0x30A, False, [0x100, 0x2, 0x8, 0x200]),
        (0x30A, True, [0x200, 0x100, 0x2, 0x8]),
        (0x40000200, False, [0x200]),
        (0x80 | 0x4, True, [0x80, 0x4]),
    ],
)
def test_events_that_come_together_are_told_in_order(mask: int, there: bool, expected: list[int]) -> None:
    """As they can have happened, given how it is now."""
    assert replay.in_order(mask, there=there) == expected
