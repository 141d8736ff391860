"""Limits of CPU time hold for what the container does, and never for what runvm does around it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from framework import host as books
from framework import process
from framework.process import wait_until
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Container, Runtime
    from runvm.sandbox.registry import Sandbox

pytestmark = pytest.mark.only("runvm", "others have no virtual machine to wait for")
QUOTA, SHARES = 20000, 100
AROUND = QUOTA + (QUOTA + 100000) // 20
"""The quota around the virtual machine, which has to do with its own work."""


def slow(container: Container, quota: int = QUOTA) -> Container:
    """The same container with little CPU time."""
    container.bundle.resources["cpu"] = {"quota": quota, "period": 100000, "shares": SHARES}
    return container


def limits(container: Container) -> tuple[int, int]:
    """Quota and shares around the virtual machine, -1 and 1024 for none."""
    path = books.cgroups_of(container.init_pid)
    if "cpu" not in path:  # version 2
        with open(f"/sys/fs/cgroup{path['']}/cpu.max", encoding="ascii") as file:
            quota = file.read().split()[0]
        with open(f"/sys/fs/cgroup{path['']}/cpu.weight", encoding="ascii") as file:
            weight = int(file.read())
        return int(quota.replace("max", "-1")), 1024 if weight == 100 else SHARES
    found = []
    for name in ("cpu.cfs_quota_us", "cpu.shares"):
        with open(f"/sys/fs/cgroup/cpu{path['cpu']}/{name}", encoding="ascii") as file:
            found.append(int(file.read()))
    return found[0], found[1]


def sandbox_of(runtime: Runtime) -> Sandbox:
    """The only one there is."""
    (name,) = os.listdir(f"{runtime.state_dir}/sandboxes")
    return registry.locate(runtime.state_dir, name)


@contextmanager
def stopped_vmm(runtime: Runtime) -> Iterator[None]:
    """The virtual machine stands still, and nothing ran in its container when it was stopped: to the guest's scheduler
    all the time that it stands still is used by what ran then, and counts against the container's quota there."""
    vmm = registry.processes(sandbox_of(runtime))["vmm"]
    wait_until(lambda: idle(vmm.pid), timeout=30, what="the container to have nothing to do")
    os.kill(vmm.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(vmm.pid, signal.SIGCONT)


def idle(pid: int) -> bool:
    """Whether a process uses less than a twentieth of a processor, for half a second."""
    before = process.cpu_ticks(pid)
    time.sleep(0.5)
    return process.cpu_ticks(pid) - before <= os.sysconf("SC_CLK_TCK") // 40


@pytest.fixture
def running(box: Box) -> Container:
    """A container with little CPU time that has been started."""
    return slow(box.idle()).launch()


def test_the_limits_hold_from_the_start_on(box: Box, runtime: Runtime) -> None:
    """A created container has none around its virtual machine; from its start on they hold, after an exec as well."""
    container = slow(box.sh("cat /sys/fs/cgroup/cpu.max; sleep 1000"))
    container.bundle.namespace("cgroup")
    container.create()
    assert limits(container) == (-1, 1024)
    container.start()
    assert limits(container) == (AROUND, SHARES)
    wait_until(lambda: container.stdout() == f"{QUOTA} 100000\n".encode(), timeout=60, what="the limit in the guest")
    assert container.sh("echo in") == "in"
    assert limits(container) == (AROUND, SHARES)
    runtime.ok("pause", container.id)
    runtime.ok("resume", container.id)
    assert limits(container) == (AROUND, SHARES)


def test_a_hundredth_of_a_processor_is_enough_to_start(box: Box) -> None:
    """The least that Docker takes: up, through, and out."""
    container = slow(box("echo", "done"), 1000)
    assert container.run(timeout=120).stdout == b"done\n"


def test_an_exec_created_first_brings_the_limits(box: Box) -> None:
    """What runs in a container that hasn't been started is limited as well."""
    container = slow(box.idle())
    container.create()
    assert container.sh("echo in") == "in"
    assert limits(container) == (AROUND, SHARES)


@contextmanager
def lifter(sandbox: Sandbox) -> Iterator[int]:
    """A process that lifts the limits, and waits."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        lift = cpu_limits.Lift(sandbox)
        os.write(done, b"1" if lift.held else b"0")
        signal.pause()
        os._exit(0)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"1"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_whoever_comes_next_puts_the_limits_back(running: Container, runtime: Runtime) -> None:
    """For a command that was killed while it had lifted them; of several that have, it is the last."""
    sandbox = sandbox_of(runtime)
    with lifter(sandbox):
        with lifter(sandbox):
            assert limits(running) == (-1, 1024)
        runtime.ok("update", "--cpu-quota", "30000", running.id)
        assert limits(running) == (-1, 1024), "somebody has lifted them still"
    assert limits(running) == (-1, 1024), "nobody knows of the end yet"
    runtime.ok("kill", running.id, "CONT")
    assert limits(running) == (36500, SHARES)
    runtime.ok("update", "--cpu-quota", "-1", running.id)
    assert limits(running) == (-1, SHARES)


def test_a_killed_commands_limits_come_back_by_themselves(running: Container, runtime: Runtime) -> None:
    """The supervisor sees its connection end."""
    with stopped_vmm(runtime):
        command = runtime.start("exec", running.id, "true")
        wait_until(lambda: limits(running) == (-1, 1024), timeout=30, what="the exec to lift the limits")
        time.sleep(1)  # it waits for the guest now
        command.kill()
        wait_until(lambda: limits(running) == (AROUND, SHARES), timeout=15, what="the limits")


def test_a_guest_that_does_not_answer_gains_nothing(running: Container, runtime: Runtime) -> None:
    """The command waits on, but with the limits in force."""
    with stopped_vmm(runtime):
        command = runtime.start("exec", running.id, "true")
        wait_until(lambda: limits(running) == (-1, 1024), timeout=30, what="the exec to lift the limits")
        wait_until(lambda: limits(running) == (AROUND, SHARES), timeout=30, what="the limits")
        assert process.alive(command.popen.pid)
    assert command.wait(60).code == 0
