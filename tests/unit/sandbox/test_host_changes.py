"""Which changes of the host a guest is told, and what it may ask for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from framework import process
from runvm.linux import fanotify
from runvm.linux.loop import Loop
from runvm.protocol.messages import Changed, Done, Failed
from runvm.sandbox import host_changes
from runvm.sandbox.host_changes import HostChanges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runvm.sandbox.guest_link import GuestLink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be told who it was")


class Guest:
    """Takes what is told, and answers when it is asked to."""

    def __init__(self, share: Path, daemon: int = -1) -> None:
        self.loop = Loop()
        self.told: list[Changed] = []
        self._answers: list[Callable[[Done | Failed], None]] = []
        self.changes = HostChanges(self.loop, cast("GuestLink", self), str(share), daemon)

    def ask(self, message: Changed, answered: Callable[[Done | Failed], None]) -> None:
        self.told.append(message)
        self._answers.append(answered)

    def answer(self) -> None:
        self._answers.pop(0)(Done({}))

    def turn(self, seconds: float = 0.15) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.loop.turn(left)

    @property
    def names(self) -> list[tuple[int, str]]:
        return [pair for message in self.told for pair in zip(message.directories, message.names, strict=True)]


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A served directory with one that is mounted in a container, and what the guest has no business in."""
    for name in ("shared/1/sub", "containers/c/rootfs", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shared" / "1" / "link").symlink_to(tmp_path / "outside")
    return tmp_path


@pytest.fixture
def guest(share: Path) -> Iterator[Guest]:
    made = Guest(share)
    yield made
    made.changes.close()


def test_changes_are_told_by_number(guest: Guest, share: Path) -> None:
    """Of watched directories alone, until they are watched no more; by batches, each once the last is answered."""
    guest.changes.watch({"4": "shared/1", "5": "shared/1/sub"})
    (share / "shared/1/a").write_text("x")
    (share / "outside/b").write_text("x")
    guest.turn()
    (share / "shared/1/sub/c").write_text("x")
    guest.turn()
    assert guest.names == [(4, "a")]
    guest.answer()
    assert guest.names == [(4, "a"), (5, "c")]
    guest.answer()
    guest.changes.watch({"4": ""})
    (share / "shared/1/d").write_text("x")
    guest.turn()
    assert guest.names == [(4, "a"), (5, "c")]
    guest.changes.watch({"5": ""})
    assert guest.changes._groups == {}


def test_a_file_that_is_mounted_by_itself(guest: Guest, share: Path) -> None:
    """What is written to it is told as the file's own."""
    (share / "shared/2").touch()
    guest.changes.watch({"1": "shared/2", "2": "shared/1"})
    (share / "shared/2").write_text("x")
    (share / "shared/1/a").touch()
    guest.turn()
    guest.answer()
    guest.turn()
    assert sorted(set(guest.names)) == [(1, "."), (2, "a")]
    guest.changes.watch({"1": ""})
    guest.changes.watch({"2": ""})
    assert guest.changes._groups == {}


def test_what_the_daemon_does_is_not_told(share: Path) -> None:
    """Or a child of it: the guest did that."""
    guest = Guest(share, os.getpid())
    guest.changes.watch({"1": "shared/1"})
    (share / "shared/1/own").write_text("x")
    script = f"echo >{share}/shared/1/childs; (echo >{share}/shared/1/hosts; echo; exec sleep 60); :"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        guest.turn()
        os.killpg(child.pid, signal.SIGKILL)
    guest.changes.close()
    assert {name for _, name in guest.names} == {"hosts"}


@pytest.mark.parametrize(
    "wanted",
    [
        {"1": "outside"},
        {"1": "containers/c/rootfs"},
        {"1": "shared/../outside"},
        {"1": "shared/1/link"},
        {"1": "shared/1/../../outside"},
        {"1": "/shared/1"},
        {"1": "shared/none"},
        {"1": "shared/1\0"},
        {"1": 7},
        {"-1": "shared/1"},
        {"x": "shared/1"},
        {"9" * 100: "shared/1"},
    ],
)
def test_a_guest_watches_nothing_else(guest: Guest, wanted: dict[str, Any]) -> None:
    """What isn't in a mounted directory, symlinks that lead out of it, nonsense."""
    guest.changes.watch(wanted)
    assert guest.changes._names == {}
    assert guest.changes._groups == {}


def test_a_guest_cannot_watch_without_end(guest: Guest, share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor have changes kept for it without end while it doesn't answer."""
    monkeypatch.setattr(host_changes, "_MAX_DIRECTORIES", 10)
    monkeypatch.setattr(host_changes, "_MAX_PENDING", 5)
    guest.changes.watch({str(number): "shared/1" for number in range(100)})
    assert len(guest.changes._names) == 10
    guest.changes.watch({str(number): "" for number in range(1, 100)})
    for number in range(30):
        (share / f"shared/1/{number}").touch()
        guest.turn(0.03)
    assert len(guest.told) == 1
    assert len(guest.changes._pending) <= 5


def test_what_is_watched_no_more_isnt_marked_wherever_it_is(guest: Guest, share: Path) -> None:
    """Marks count for all of root's processes (max_user_marks), and a guest may rename directories."""
    (share / "shared/1/file").touch()
    guest.changes.watch({"1": "shared/1", "2": "shared/1/sub", "3": "shared/1/file"})
    (share / "shared/1/sub").rename(share / "shared/1/moved")
    (share / "shared/1/sub").mkdir()
    (share / "shared/1/file").rename(share / "shared/1/moved/file")
    groups = guest.changes._groups
    assert {single: process.fanotify_marks(group.fd) for single, group in groups.items()} == {False: 2, True: 1}
    guest.changes.watch({"2": "", "3": ""})
    assert {single: process.fanotify_marks(group.fd) for single, group in groups.items()} == {False: 1, True: 0}


def test_marks_that_cannot_be_removed_are_bounded(guest: Guest, share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a file system that isn't mounted any more: all is marked anew, and nothing is missed."""
    monkeypatch.setattr(host_changes, "_MAX_LOST", 3)

    def fail(mount: int, name: bytes) -> int:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(fanotify, "open_marked", fail)
    guest.changes.watch({"1": "shared/1"})
    for number in range(8):
        (share / "shared/1/d").mkdir()
        guest.changes.watch({"2": "shared/1/d"})
        (share / "shared/1/d").rename(share / f"outside/{number}")
        guest.changes.watch({"2": ""})
    assert process.fanotify_marks(guest.changes._groups[False].fd) <= 5
    (share / "shared/1/last").touch()
    guest.turn()
    guest.answer()
    guest.turn()
    assert {(number, name) for number, name in guest.names} >= {(1, "d"), (1, "last")}
