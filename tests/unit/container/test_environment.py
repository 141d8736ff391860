"""The environment that a process gets."""

from __future__ import annotations

import ctypes
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runvm.container import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_OPEN = 0x20  # sys/inotify.h


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["HOME=/h"]),
        (["A=1", "B=2", "A=3"], ["B=2", "A=3", "HOME=/h"]),
        (["HOME=", "A=="], ["HOME=/h", "A=="]),
        (["HOME=/x", "HOME="], ["HOME=/h"]),
        (["HOME=", "HOME=/x"], ["HOME=/x"]),
        (["A"], ["A", "HOME=/h"]),
    ],
)
def test_each_variable_comes_once_with_its_last_value(given: list[str], expected: list[str]) -> None:
    """HOME is filled in where it is unset or empty."""
    assert environment.complete(given, "/h") == expected


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A root directory with an /etc."""
    (tmp_path / "etc").mkdir()
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_the_home_is_that_of_passwd(root: int, tmp_path: Path) -> None:
    """The first line with the uid; what isn't a line of passwd is passed over."""
    (tmp_path / "etc/passwd").write_bytes(
        b"\n:::\nbroken:x:5\na:x:5:5:A:/home/a:/bin/sh\nb:x:5:5::/b:\n\xff:x:6:6::/six:\ne:x:7:7:::\n"
    )
    assert [environment.home_in(root, uid) for uid in (5, 6, 7, 8)] == ["/home/a", "/six", "/", "/"]


def test_a_hostile_passwd_is_no_trouble(root: int, tmp_path: Path) -> None:
    """A link to the host's, a FIFO, a directory, none at all."""
    path = tmp_path / "etc/passwd"
    assert environment.home_in(root, 0) == "/"
    path.symlink_to("/../../../../../../../../etc/passwd")
    assert environment.home_in(root, 0) == "/"
    path.unlink()
    os.mkfifo(path)
    assert environment.home_in(root, 0) == "/"
    path.unlink()
    path.mkdir()
    assert environment.home_in(root, 0) == "/"
    path.rmdir()
    path.write_text(f"root:x:0:0:root:/{'x' * 5000}:/bin/sh\n")
    assert environment.home_in(root, 0) == "/", "no path is that long"


def test_what_is_no_regular_file_isnt_even_opened(root: int, tmp_path: Path) -> None:
    """A container may put a device there, of which the host's driver would hear: a watchdog, say, that reboots it."""
    path = tmp_path / "etc/passwd"
    for make, opened in ((os.mkfifo, False), (Path.touch, True)):
        make(path)
        watch = ctypes.CDLL(None).inotify_init1(os.O_NONBLOCK)
        assert ctypes.CDLL(None).inotify_add_watch(watch, os.fsencode(path), _IN_OPEN) >= 0
        environment.home_in(root, 0)
        assert bool(select.select([watch], [], [], 0)[0]) == opened
        os.close(watch)
        path.unlink()
