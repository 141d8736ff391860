"""A command that is killed half-way, at several moments: what it leaves can be deleted, and its id used again."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from runvm.config import Config
from runvm.container import state
from runvm.container.context import Context

if TYPE_CHECKING:
    from pathlib import Path

    from framework.runtime import Box, Container

# Seconds after its start at which a command is killed: while it reads its config, makes its state, starts its VM, waits
# for the guest, talks to the caller
MOMENTS = [0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]

pytestmark = pytest.mark.only("runvm", "runc may leave its half-made init and cgroup behind")


def known(container: Container) -> str:
    """The status, '' where there's no such container; whatever state the killed command left, this ends at once."""
    result = container.runtime.call("state", container.id, timeout=15)
    if result.code != 0:
        assert result.error == "container does not exist", result.describe()
        return ""
    return str(result.json()["status"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_create_killed_half_way_can_be_deleted_and_done_again(box: Box, number: int) -> None:
    """create, ended at several moments: `delete --force` clears what is there; then the id works."""
    for moment in MOMENTS:
        container = box.idle()
        command = container.begin()
        time.sleep(moment)
        command.signal(number)
        container.created(command)
        known(container)
        container.delete("--force")
        assert known(container) == ""
    container.launch()
    assert container.sh("echo works") == "works"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_run_killed_half_way_leaves_nothing_after_delete(box: Box, number: int) -> None:
    """run --detach, likewise; where it got far enough to be running, the container is whole."""
    for moment in MOMENTS:
        container = box.idle()
        command = container.begin("--detach", command="run")
        time.sleep(moment)
        command.signal(number)
        container.created(command)
        if known(container) == "running":
            assert container.sh("echo works") == "works"
        container.delete("--force")
        assert known(container) == ""


def test_start_killed_half_way(box: Box) -> None:
    """start: the container is created, running or stopped after it, and a second start or delete works."""
    for moment in (0.01, 0.05, 0.1, 0.3):
        container = box.idle()
        container.create()
        command = container.runtime.start("start", container.id)
        time.sleep(moment)
        command.signal(signal.SIGKILL)
        command.wait(30)
        status = known(container)
        assert status in ("created", "running", "stopped")
        if status == "created":
            container.start()
            assert known(container) == "running"
        container.delete("--force")


def write_down(container: Container, **fields: bool) -> None:
    """Change what the container's record says."""
    path = f"{container.runtime.root}/{container.id}/state.json"
    with open(path, encoding="utf-8") as file:
        record = json.load(file) | fields
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file)


def test_start_killed_before_it_is_written_down(box: Box) -> None:
    """The process runs in the guest, but the record says that it doesn't: a second start mends that."""
    container = box.sleeper()
    write_down(container, started=False)
    assert known(container) == "created"
    container.start()
    assert known(container) == "running"
    assert container.sh("echo works") == "works"


def test_pause_killed_once_it_is_written_down(box: Box) -> None:
    """The record says so, and the guest hasn't heard of it: `resume` mends that."""
    container = box.sleeper()
    write_down(container, paused=True)
    assert known(container) == "paused"
    container.runtime.ok("resume", container.id)
    assert known(container) == "running"
    assert container.sh("echo works") == "works"


def test_exec_killed_half_way_leaves_the_container_well(box: Box) -> None:
    """exec, killed at several moments: the container runs on, and further execs work, at once and many of them."""
    container = box.sleeper()
    for moment in (0.01, 0.05, 0.1, 0.2, 0.4, 0.8):
        command = container.runtime.start("exec", container.id, "sleep", "1001")
        time.sleep(moment)
        command.kill()
    for number in range(5):
        assert container.sh(f"echo works {number}") == f"works {number}"
    assert container.status == "running"


def test_delete_killed_half_way_can_be_done_again(box: Box) -> None:
    """delete --force, killed at several moments: a second one finishes the work."""
    for moment in (0.01, 0.05, 0.1, 0.2, 0.4):
        container = box.sleeper()
        command = container.runtime.start("delete", "--force", container.id)
        time.sleep(moment)
        command.signal(signal.SIGKILL)
        command.wait(30)
        container.delete("--force")
        assert known(container) == ""


def test_delete_without_force_removes_what_a_killed_create_has_left(box: Box) -> None:
    """And says that there is no such container, as runc does; one that it had made before it was killed is deleted."""
    for moment in MOMENTS:
        container = box.idle()
        command = container.begin()
        time.sleep(moment)
        command.signal(signal.SIGKILL)
        container.created(command)
        result = container.runtime.call("delete", container.id)
        assert result.code == 0 or result.error == "container does not exist", result.describe()
        assert not os.path.exists(f"{container.runtime.root}/{container.id}")
    container.launch()
    assert container.sh("echo works") == "works"


def test_start_of_what_a_killed_create_has_left_finds_no_container(box: Box) -> None:
    """As under runc."""
    container = box.idle()
    os.makedirs(f"{container.runtime.root}/{container.id}")
    result = container.runtime.call("start", container.id)
    assert (result.code, result.error) == (1, "container does not exist")


def test_delete_waits_for_a_create_that_runs(box: Box) -> None:
    """It isn't taken for one that was killed, not even where its directory is still empty."""
    container = box.idle()
    path = f"{container.runtime.root}/{container.id}"
    os.makedirs(path)
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    command = container.runtime.start("delete", container.id)
    time.sleep(1)
    assert command.running()
    assert os.path.isdir(path)
    os.close(fd)
    assert "container does not exist" in command.wait(30).stderr.decode()
    assert not os.path.exists(path)


def test_create_goes_on_where_a_delete_came_first(tmp_path: Path) -> None:
    """A delete that gets the lock between a create's making the directory and locking it removes that."""
    ctx = Context(str(tmp_path), Config(), "cgroupfs", "false")
    seen: list[str] = []

    def remove_once(path: str, mode: int) -> None:
        real(path, mode)
        if not seen:
            seen.append(path)
            os.rmdir(path)

    real = os.mkdir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkdir", remove_once)
        with state.claim(ctx, "c1"):
            assert os.path.isdir(f"{tmp_path}/c1")
    assert seen
