"""kill -9 of each process of a container, at several moments: the state is true, nobody hangs, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.host import processes_of

if TYPE_CHECKING:
    from framework.process import Process
    from framework.runtime import Box, Container

VM_ONLY = pytest.mark.only("runvm", "there is a virtual machine")
ROLES = ["shim", *(pytest.param(role, marks=VM_ONLY) for role in ("supervisor", "vmm", "virtiofsd"))]
GONE_WITHIN_S = 10.0


def is_over(container: Container) -> None:
    """The pid ends, reapable; the state is stopped; further commands answer at once; delete takes it away."""
    assert container.wait(GONE_WITHIN_S) != 0
    container.wait_status("stopped", timeout=GONE_WITHIN_S)
    begun = time.monotonic()
    assert container.runtime.call("kill", container.id, "9").error == "container not running"
    assert container.exec("true").code == 255
    assert time.monotonic() - begun < 10
    container.delete()
    assert container.id not in container.runtime.ids()


@pytest.mark.parametrize("role", ROLES)
def test_a_created_container_whose_process_is_killed_is_stopped(box: Box, role: str) -> None:
    """Between create and start."""
    container = box.idle()
    container.create()
    os.kill(processes_of(container)[role], signal.SIGKILL)
    is_over(container)


@pytest.mark.parametrize("role", ROLES)
def test_a_running_container_whose_process_is_killed_is_stopped(box: Box, role: str) -> None:
    """While it runs, with a foreground exec and an exec's detached process under way: their callers end, too."""
    container = box.sh("while :; do date; done").launch()
    foreground = container.runtime.start("exec", container.id, "sh", "-c", "echo up; exec sleep 1000")
    wait_for_output(foreground, b"up\n")
    pid_file = f"{container.bundle.path}/exec.pid"
    with open(os.devnull, "wb") as null:
        arguments = ("exec", "--detach", "--pid-file", pid_file, container.id, "sleep", "1000")
        container.runtime.start(*arguments, stdout=null, stderr=null).wait(container.runtime.timeout).expect(0)
    with open(pid_file, encoding="ascii") as file:
        detached = int(file.read())

    os.kill(processes_of(container)[role], signal.SIGKILL)
    assert process.reap(detached, GONE_WITHIN_S) != 0
    assert foreground.wait(GONE_WITHIN_S).code != 0
    is_over(container)


def wait_for_output(command: Process, wanted: bytes) -> None:
    """Read a command's first output."""
    assert command.popen.stdout is not None
    assert command.popen.stdout.read(len(wanted)) == wanted


@pytest.mark.parametrize("role", ROLES)
def test_a_foreground_run_ends_when_a_process_is_killed(box: Box, role: str) -> None:
    """`run` without --detach: its caller gets an exit code other than 0 within seconds, and nothing is left."""
    container = box.sh("echo up; while :; do sleep 0.1; done")
    container.bundle.save()
    arguments = ("run", "--bundle", container.bundle.path, "--pid-file", container.pid_file, container.id)
    command = container.runtime.start(*arguments)
    wait_for_output(command, b"up\n")
    process.wait_until(lambda: os.path.exists(container.pid_file), timeout=10, what="the pid-file")
    container.init_pid = container.read_pid_file()
    os.kill(processes_of(container)[role], signal.SIGKILL)
    assert command.wait(GONE_WITHIN_S).code != 0


@VM_ONLY
@pytest.mark.only("runvm", "there is a virtual machine")
def test_create_fails_soon_when_the_vm_ends_meanwhile(box: Box) -> None:
    """QEMU is killed while the guest makes the container: create says so at once, and leaves nothing."""
    container = box.idle()
    find = 's/.*"vmm": *\\[\\([0-9]*\\),.*/\\1/p'
    script = f"""#!/bin/sh
    cd {container.runtime.state_dir}/sandboxes/*/ || exit 1
    while ! vmm=$(sed -n '{find}' processes.json) || [ -z "$vmm" ]; do sleep 0.05; done
    kill -STOP $vmm
    (sleep 2; kill -KILL $vmm) </dev/null >/dev/null 2>&1 &
    """
    container.bundle.hook("createRuntime", container.bundle.file("/stop", script, mode=0o755))
    container.bundle.save()
    begun = time.monotonic()
    result = container.try_create()
    assert result.code == 1, result.describe()
    assert time.monotonic() - begun < 15
    assert "the virtual machine" in result.error, "the cause, not just that it has ended"
    assert container.id not in container.runtime.ids()


@VM_ONLY
@pytest.mark.only("runvm", "there is a virtual machine")
@pytest.mark.parametrize("victim", ["vmm", "supervisor"])
def test_create_names_the_cause_of_a_vm_that_ended_before_it_was_asked(box: Box, victim: str) -> None:
    """The VM comes up and ends while create still runs its hooks: nobody waited for an answer that could say why."""
    container = box.idle()
    find = f's/.*"{victim}": *\\[\\([0-9]*\\),.*/\\1/p'
    script = f"""#!/bin/sh
    cd {container.runtime.state_dir}/sandboxes/*/ || exit 1
    while ! victim=$(sed -n '{find}' processes.json) || [ -z "$victim" ]; do sleep 0.05; done
    kill -KILL $victim
    sleep 3
    """
    container.bundle.hook("createRuntime", container.bundle.file("/kill", script, mode=0o755))
    container.bundle.save()
    result = container.try_create()
    assert result.code == 1, result.describe()
    assert "the virtual machine" in result.error, result.describe()
    assert container.id not in container.runtime.ids()


def test_delete_force_of_a_container_whose_processes_are_all_killed(box: Box) -> None:
    """All four at once: `delete --force` clears what is left."""
    container = box.sleeper()
    for pid in processes_of(container).values():
        os.kill(pid, signal.SIGKILL)
    container.delete("--force")
    assert container.runtime.call("state", container.id).error == "container does not exist"


@VM_ONLY
@pytest.mark.parametrize("role", ["supervisor", "vmm", "virtiofsd"])
def test_a_process_that_hangs_doesnt_hang_delete(box: Box, role: str) -> None:
    """SIGSTOP of a process: `state` and `delete --force` end within their deadlines, and nothing is left."""
    container = box.sleeper()
    os.kill(processes_of(container)[role], signal.SIGSTOP)
    assert container.runtime.call("state", container.id, timeout=10).code == 0
    container.runtime.call("delete", "--force", container.id, timeout=60).expect(0)
    assert container.id not in container.runtime.ids()


@VM_ONLY
@pytest.mark.parametrize("role", ["supervisor", "vmm", "virtiofsd"])
def test_a_process_that_hangs_doesnt_outlive_sigkill(box: Box, role: str) -> None:
    """As under runc, where nothing but the kernel is asked: the container's process ends, which engines wait for."""
    container = box.sleeper()
    os.kill(processes_of(container)[role], signal.SIGSTOP)
    container.runtime.call("kill", container.id, "KILL", timeout=40).expect(0)
    assert container.wait(20) == 128 + signal.SIGKILL
    assert container.runtime.call("state", container.id, timeout=10).json()["status"] == "stopped"
    container.runtime.call("delete", container.id, timeout=60).expect(0)
    assert container.id not in container.runtime.ids()


@VM_ONLY
def test_a_guest_that_crashes_ends_its_container(box: Box) -> None:
    """A kernel panic in the guest, asked for by a container that may: the state is stopped, and the pid ends."""
    container = box.sh("sleep 1; echo c >/proc/sysrq-trigger; sleep 1000")
    container.bundle.linux["readonlyPaths"] = []
    container.bundle.process["capabilities"] = {
        kind: [*container.bundle.process["capabilities"]["bounding"], "CAP_SYS_ADMIN"]
        for kind in ("bounding", "effective", "permitted")
    }
    container.launch()
    assert container.wait(30) != 0
    container.wait_status("stopped", timeout=GONE_WITHIN_S)


@VM_ONLY
def test_a_sandbox_of_two_containers_survives_the_end_of_one(box: Box) -> None:
    """Two containers in one VM: SIGKILL to one's shim ends that one; the other runs on, and the VM ends with it."""
    one = box.sleeper()
    other = box.idle()
    other.bundle.namespace("network", f"/proc/{one.init_pid}/ns/net")
    other.launch()
    assert processes_of(one)["vmm"] == processes_of(other)["vmm"], "one VM"
    vmm = processes_of(one)["vmm"]
    os.kill(one.init_pid, signal.SIGKILL)
    assert one.wait(GONE_WITHIN_S) == 128 + signal.SIGKILL
    one.wait_status("stopped", timeout=GONE_WITHIN_S)
    assert other.sh("echo alive") == "alive"
    one.delete()
    assert other.sh("echo alive") == "alive"
    other.delete("--force")
    process.wait_until(lambda: not process.alive(vmm), timeout=GONE_WITHIN_S, what="the VM's end")
