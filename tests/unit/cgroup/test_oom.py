"""Showing the guest's OOM kills on the host: never two at a time, and never so that the supervisor waits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from runvm.cgroup import oom
from runvm.linux.loop import Loop


class Host:
    """A directory that looks like a memory cgroup, and a log of what was done to it; each takes *seconds*."""

    def __init__(self, directory: Path) -> None:
        self.cgroups = (str(directory),)
        self.log = directory / "log"
        self.seconds = 0.0
        self.dies = False
        self.updated = ""
        self.limit = directory / "memory.max"
        self.limit.write_text("100")
        (directory / "memory.current").write_text("4096")
        self.log.write_text("")

    def attempt(self, directory: str, name: str, usage: str, tell: int) -> None:
        """In oom._attempt's place: a real one needs a kernel that kills, see the Docker tests."""
        with open(self.log, "a") as file:
            file.write(f"{name} {usage}\n")
        os.write(tell, b"100 64\n")
        self.limit.write_text("64")
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.updated:
            self.limit.write_text(self.updated)
        time.sleep(self.seconds)

    def count(self) -> int:
        """How many there were."""
        return self.log.read_text().count("memory.max memory.current")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Attempts are told to it."""
    made = Host(tmp_path)
    monkeypatch.setattr(oom, "_attempt", made.attempt)
    return made


def until_reaped(loop: Loop) -> None:
    """Turn *loop* until it has no children."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        loop.turn(0.05)
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
    raise AssertionError("a child isn't reaped")


def test_one_that_takes_long_is_not_waited_for_nor_joined_by_another(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one would take the lowered limit for the one to restore."""
    monkeypatch.setattr(oom, "_INTERVAL", 0.0)
    host.seconds = 0.5
    loop = Loop()
    display = oom.Display(loop)
    begun = time.monotonic()
    display.show(host.cgroups)
    display.show(host.cgroups)
    assert time.monotonic() - begun < 0.4
    until_reaped(loop)
    assert host.count() == 1
    display.show(host.cgroups)
    until_reaped(loop)
    assert host.count() == 2


def test_a_guest_that_kills_all_the_time_is_shown_now_and_then(host: Host) -> None:
    """It takes the host's time."""
    loop = Loop()
    display = oom.Display(loop)
    for _ in range(3):
        display.show(host.cgroups)
        until_reaped(loop)
    assert host.count() == 1


def test_a_guest_that_goes_on_is_shown_less_and_less(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of its pod are shown meanwhile."""
    monkeypatch.setattr(oom, "_INTERVAL", 0.1)
    loop = Loop()
    display = oom.Display(loop)
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        display.show(host.cgroups)
        loop.turn(0.02)
    until_reaped(loop)
    assert host.count() <= 4, "at 0, 0.1, 0.3, 0.7"
    before = host.count()
    display.show((*host.cgroups, "another"))
    until_reaped(loop)
    assert host.count() == before + 1


@pytest.mark.parametrize(("updated", "dies", "after"), [("", True, "100"), ("777", False, "777"), ("", False, "100")])
def test_the_limit_is_what_it_was_or_what_somebody_has_set(host: Host, updated: str, dies: bool, after: str) -> None:
    """Also where the process that lowered it was killed."""
    host.updated, host.dies = updated, dies
    loop = Loop()
    oom.Display(loop).show(host.cgroups)
    until_reaped(loop)
    assert host.count() == 1
    assert host.limit.read_text() == after


def test_a_container_without_a_memory_cgroup_has_nothing_to_show(host: Host) -> None:
    """As with --cgroup-manager=disabled."""
    oom.Display(Loop()).show(("/proc/self",))
    assert host.count() == 0


def test_an_end_waits_until_the_kill_has_been_shown(host: Host) -> None:
    """An engine doesn't look for a kill any more once the container has ended."""
    loop, ends = Loop(), []
    host.seconds = 0.2
    display = oom.Display(loop)
    display.when_shown(lambda: ends.append(host.count()))
    assert ends == [0], "nothing to wait for"
    display.show(host.cgroups)
    display.when_shown(lambda: ends.append(host.count()))
    assert ends == [0]
    until_reaped(loop)
    assert ends == [0, 1]
