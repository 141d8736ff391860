"""An engine's daemon that is killed: containers go on, or are cleaned up, as Docker promises it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.docker import IMAGE, Dockerd, missing
from framework.engine import opened
from framework.host import processes_of_only_vm
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Runtime

SLEEP = ("sh", "-c", "trap 'exit 0' TERM; echo begun; while :; do sleep 1; done")


@pytest.fixture(scope="module")
def docker(runtime: Runtime, scratch: str, template: str) -> Iterator[Dockerd]:
    """A dockerd of this file's own, since it gets killed."""
    if name := missing():
        pytest.skip(f"{name} isn't installed: apt-get install docker.io")
    with opened(Dockerd(f"{scratch}/killed", runtime, template)) as daemon:
        yield daemon


def test_containers_live_on_when_dockerd_is_killed(docker: Dockerd, host: Host) -> None:
    """live-restore and kill -9 of dockerd: the container runs on, and the next dockerd execs in it and stops it."""
    docker.detached("--name", "survivor", IMAGE, *SLEEP)
    pid = docker.inspect("survivor")["State"]["Pid"]
    docker.kill()
    assert process.alive(pid)
    docker.start()
    assert docker.inspect("survivor")["State"]["Pid"] == pid
    assert docker.ok("exec", "survivor", "echo", "alive") == "alive"
    docker.ok("stop", "survivor")
    assert docker.inspect("survivor")["State"]["ExitCode"] == 0
    docker.ok("rm", "survivor")
    host.mark()  # the new dockerd is no leak


def test_a_restarted_dockerd_finds_its_containers(docker: Dockerd, host: Host) -> None:
    """SIGTERM to dockerd and a new one: running containers have run on, one that has ended meanwhile is known to have
    and, by its policy, starts again; one that was stopped by hand stays so."""
    docker.detached("--name", "runs", IMAGE, *SLEEP)
    docker.detached("--name", "stopped", "--restart", "unless-stopped", IMAGE, *SLEEP)
    docker.detached("--name", "always", "--restart", "always", IMAGE, *SLEEP)
    docker.ok("stop", "stopped")
    pids = {name: docker.inspect(name)["State"]["Pid"] for name in ("runs", "always")}
    docker.stop()
    os.kill(pids["always"], signal.SIGTERM)
    wait_until(lambda: not process.alive(pids["always"]), timeout=60, what="the container's end")
    docker.start()
    assert docker.inspect("runs")["State"]["Pid"] == pids["runs"]
    assert docker.ok("exec", "runs", "echo", "alive") == "alive"
    wait_until(lambda: docker.inspect("always")["State"]["Running"], timeout=90, what="its new life", interval=0.5)
    assert docker.inspect("always")["State"]["Pid"] != pids["always"]
    assert docker.inspect("stopped")["State"]["Status"] == "exited"
    docker.ok("rm", "--force", "runs", "stopped", "always")
    host.mark()


def test_a_killed_containerd_shim_ends_its_container(docker: Dockerd) -> None:
    """kill -9 of containerd's shim: containerd calls `delete --force`, and the container shows as exited."""
    docker.detached("--name", "orphan", IMAGE, *SLEEP)
    pid = docker.inspect("orphan")["State"]["Pid"]
    shim = process.parent(pid)
    assert "containerd-shim" in process.command_line(shim)
    os.kill(shim, signal.SIGKILL)
    wait_until(
        lambda: docker.inspect("orphan")["State"]["Status"] == "exited", timeout=30, what="its end", interval=0.2
    )
    assert not process.alive(pid)
    docker.ok("start", "orphan")
    assert docker.ok("exec", "orphan", "echo", "again") == "again"
    docker.ok("rm", "--force", "orphan")


@pytest.mark.only("runvm", "there is a virtual machine")
@pytest.mark.parametrize("role", ["vmm", "virtiofsd"])
def test_a_killed_vm_shows_as_an_exited_container(docker: Dockerd, runtime: Runtime, role: str) -> None:
    """kill -9 of the VMM or of its file server: inspect says exited, with a code that isn't 0; it starts again."""
    docker.detached("--name", "vm", IMAGE, *SLEEP)
    os.kill(processes_of_only_vm(runtime)[role], signal.SIGKILL)
    wait_until(lambda: docker.inspect("vm")["State"]["Status"] == "exited", timeout=30, what="its end", interval=0.2)
    assert docker.inspect("vm")["State"]["ExitCode"] != 0
    docker.ok("start", "vm")
    assert docker.ok("exec", "vm", "echo", "again") == "again"
    docker.ok("rm", "--force", "vm")
