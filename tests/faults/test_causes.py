"""A start that fails says why: which part of the virtual machine failed, and what that said last."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from framework.host import processes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from framework.process import Result
    from framework.runtime import Box, Container, Runtime

pytestmark = pytest.mark.only("runvm", "there is a virtual machine")

_serial = itertools.count(1)
_FIND = """#!/bin/sh
cd {state_dir}/sandboxes/*/ || exit 1
while ! pid=$(sed -n 's/.*"{role}": *\\[\\([0-9]*\\),.*/\\1/p' processes.json 2>/dev/null) || [ -z "$pid" ]; do
  sleep 0.05
done
echo "the last thing that was said" >>{log}
kill -KILL $pid
"""


@pytest.fixture
def create(runtime: Runtime) -> Callable[..., Result]:
    """`create` of a container with further settings."""

    def call(container: Container, settings: str) -> Result:
        container.bundle.save()
        path = f"{runtime.scratch}/causes-{next(_serial)}.toml"
        with open(runtime.config_file, encoding="utf-8") as file, open(path, "w", encoding="utf-8") as own:
            names = {line.split(" ")[0] for line in settings.splitlines()}
            own.write("".join(line for line in file if line.split(" ")[0] not in names) + settings)
        environment = dict(os.environ) | {"RUNVM_CONFIG": path}
        # no pipe of ours: a shim that was left would hold it
        return runtime.call("create", "--bundle", container.bundle.path, container.id, env=environment)

    return call


def program(runtime: Runtime, name: str, script: str) -> str:
    """An executable shell script that stands where one of the virtual machine's programs should be."""
    path = f"{runtime.scratch}/{name}-{next(_serial)}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n{script}\n")
    os.chmod(path, 0o755)
    return path


def said(result: Result) -> str:
    """The error in the log, as an engine shows it."""
    assert result.code == 1, result.describe()
    found = [str(record["msg"]) for record in result.log if record["level"] == "error"]
    assert len(found) == 1, result.describe()
    return found[0]


@pytest.mark.hypervisor("qemu", "the program is its own")
def test_a_qemu_that_does_not_work(box: Box, create: Callable[..., Result]) -> None:
    """It doesn't know its options, and ends before it answers: what it said is in the error."""
    error = said(create(box.idle(), 'qemu = "/usr/bin/ls"\ntemplate = false\n'))
    assert "QEMU ended" in error or "QEMU went away" in error
    assert "vmm: /usr/bin/ls: " in error


@pytest.mark.hypervisor("uml", "the program is its own")
def test_a_kernel_for_user_mode_linux_that_is_missing_or_does_not_work(
    box: Box, runtime: Runtime, create: Callable[..., Result]
) -> None:
    """None at all: the error says how to get one. One that ends at once: it is said that it did."""
    data = f"{runtime.scratch}/kernels-{next(_serial)}"
    kernel = f"{data}/kernels/uml/current"
    os.makedirs(kernel)
    os.symlink(f"{os.environ.get('RUNVM_TEST_DATA_DIR', '/var/lib/runvm')}/images", f"{data}/images")
    error = said(create(box.idle(), f'data_dir = "{data}"\n'))
    assert f"there is no kernel for User Mode Linux in {data}/kernels/uml" in error
    assert "make kernel" in error
    shutil.copy("/bin/true", f"{kernel}/linux")
    with open(f"{kernel}/manifest.json", "w", encoding="utf-8") as file:
        json.dump({"kernel": "6.1", "sha256": "0" * 64}, file)
    error = said(create(box.idle(), f'data_dir = "{data}"\n'))
    assert "User Mode Linux ended while it started" in error


def test_a_virtiofsd_that_does_not_work(box: Box, runtime: Runtime, create: Callable[..., Result]) -> None:
    """QEMU only knows that its peer has gone; virtiofsd is what is named."""
    daemon = program(runtime, "virtiofsd", "echo 'a broken daemon' >&2; exit 3")
    error = said(create(box.idle(), f'virtiofsd = "{daemon}"\n'))
    assert "virtiofsd exited with 3 before the virtual machine ran" in error
    assert "virtiofsd: a broken daemon" in error


@pytest.mark.parametrize(
    ("role", "log", "name", "reason"),
    [
        ("supervisor", "supervisor.log", "supervisor", "the supervisor ended, or was killed"),
        ("vmm", "vmm.log", "vmm", "the VMM was ended by signal 9"),
        ("virtiofsd", "vmm.log", "vmm", "virtiofsd was ended by signal 9"),
    ],
)
def test_a_process_that_is_killed_during_a_start(box: Box, role: str, log: str, name: str, reason: str) -> None:
    """By the kernel, say, for want of memory: create says which one, and what was said last."""
    container = box.idle()
    script = _FIND.format(state_dir=container.runtime.state_dir, role=role, log=log)
    container.bundle.hook("createRuntime", container.bundle.file("/kill", script, mode=0o755))
    error = said(container.try_create())
    assert reason in error
    assert f"{name}: the last thing that was said" in error
    assert container.id not in container.runtime.ids()


@pytest.mark.parametrize(("role", "name"), [("vmm", "the VMM"), ("virtiofsd", "virtiofsd")])
def test_a_virtual_machine_that_ends_between_create_and_start(box: Box, role: str, name: str) -> None:
    """`start` comes too late for anybody to answer; it tells the cause nevertheless."""
    container = box.idle()
    container.create()
    os.kill(processes_of(container)[role], signal.SIGKILL)
    container.wait(20)
    result = container.runtime.call("start", container.id)
    assert result.code == 1
    error = said(result)
    assert "cannot start a container that has stopped" in error
    assert f"the virtual machine has failed: {name} was ended by signal 9" in error
    container.delete()
