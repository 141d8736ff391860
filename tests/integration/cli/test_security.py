"""What a config.json, a root filesystem or a container may not reach."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from framework import host, process

if TYPE_CHECKING:
    from framework.runtime import Box, Runtime


@pytest.fixture
def outside(runtime: Runtime) -> str:
    """A directory of the host that no container has to do with."""
    path = f"{runtime.scratch}/outside-{os.getpid()}"
    os.makedirs(path, exist_ok=True)
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
    with open(f"{path}/precious", "w", encoding="utf-8") as file:
        file.write("untouched")
    return path


def untouched(outside: str) -> bool:
    """Whether the directory is as it was."""
    with open(f"{outside}/precious", encoding="utf-8") as file:
        return os.listdir(outside) == ["precious"] and file.read() == "untouched"


def test_a_mount_destination_with_dots_stays_in_the_root(box: Box, outside: str) -> None:
    """`/../../…` is taken from the container's root; nothing is made outside of it."""
    container = box.sh("cat /proc/self/mountinfo")
    dots = "/.." * 20
    container.bundle.mount(f"{dots}{outside}/made", "tmpfs", "tmpfs")
    container.bundle.bind(f"{outside}/precious", f"/tmp/{dots}{outside}/file", "bind", "ro")
    result = container.run()
    assert untouched(outside)
    assert result.code == 0, result.describe()
    assert f" {outside}/made " in result.text


def test_a_mount_over_a_symlink_stays_in_the_root(box: Box, runtime: Runtime, outside: str) -> None:
    """Symlinks of the root filesystem, absolute or with dots, at any part of a destination, resolve inside of it."""
    container = box.sh("cat /proc/self/mountinfo")
    rootfs = container.bundle.rootfs
    os.symlink(outside, f"{rootfs}/absolute")
    os.symlink("../" * 20 + outside.lstrip("/"), f"{rootfs}/relative")
    os.symlink(f"{outside}/new-file", f"{rootfs}/file")
    container.bundle.mount("/absolute/one", "tmpfs", "tmpfs")
    container.bundle.mount("/relative/two", "tmpfs", "tmpfs")
    container.bundle.bind(f"{outside}/precious", "/file", "bind", "ro")
    container.bundle.process["cwd"] = "/absolute/cwd"
    result = container.run()
    assert untouched(outside)
    if runtime.is_vm and result.code == 1:
        assert "absolute" in result.error  # crun makes no directory below a symlink that leads nowhere, and says so
        return
    assert result.code == 0, result.describe()
    assert f" {outside}/one " in result.text
    assert f" {outside}/two " in result.text
    assert os.path.isdir(f"{rootfs}{outside}/one"), "made inside of the root"


def test_paths_of_the_config_that_are_symlinks_touch_nothing_outside(box: Box, outside: str) -> None:
    """Masked and read-only paths, devices and hostname files that lead out by symlink do the host no harm."""
    container = box.sh("echo ran; echo written >/escape; cat /escape")
    rootfs = container.bundle.rootfs
    os.symlink(f"{outside}/precious", f"{rootfs}/escape")
    os.symlink(outside, f"{rootfs}/etc/out")
    container.bundle.linux["readonlyPaths"].append("/etc/out")
    container.bundle.linux["devices"] = [
        {"path": "/etc/out/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0}
    ]
    os.makedirs(f"{rootfs}{outside}")
    result = container.run()
    assert untouched(outside), result.describe()
    assert result.stdout.startswith(b"ran\n") or result.code == 1


def test_a_container_reaches_nothing_of_the_host_by_symlinks_it_makes(box: Box, outside: str) -> None:
    """Root in the container, symlinks out of a bind and of the root, and dots above the root: all end inside."""
    container = box.sh(
        f"ln -s {outside}/precious /shared/a; cat /shared/a; echo evil >/shared/a; ls /..{outside};"
        f" ln -s {outside} /shared/d; touch /shared/d/new; cd /shared; ls ../../../../{outside}; echo end"
    )
    shared = f"{container.bundle.path}/shared"
    os.makedirs(shared)
    container.bundle.bind(shared, "/shared", "rbind", "rw")
    result = container.run()
    assert untouched(outside)
    assert b"untouched" not in result.stdout
    assert result.stdout.endswith(b"end\n")


def test_a_program_of_the_host_isnt_run_by_a_name_in_the_container(box: Box, runtime: Runtime) -> None:
    """process.args is looked up in the container's root and PATH, never in the host's."""
    container = box("python3", "-c", "print('from the host')")
    result = container.try_create()
    assert result.code == 1
    assert "executable file not found" in result.error
    assert container.id not in runtime.ids()


@pytest.mark.only("runvm", "there is a hypervisor to confine")
def test_a_container_doesnt_see_the_hosts_kernel(box: Box) -> None:
    """uname -r is the guest's; the boot id and the machine's memory aren't the host's."""
    result = box.sh("uname -r; cat /proc/sys/kernel/random/boot_id; grep MemTotal /proc/meminfo").run().expect(0)
    release, boot_id, memory = result.text.splitlines()
    assert release != os.uname().release
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert boot_id != file.read().strip()
    assert int(memory.split()[1]) < 4 << 20


@pytest.mark.only("runvm", "there is a guest whose random state could be a clone's")
def test_two_containers_dont_share_random_state_or_identity(box: Box) -> None:
    """VMs restored from one template differ in random bytes, boot id and machine-id from their first moment."""
    script = "head -c 16 /dev/urandom | xxd -p; cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid"
    one, other = (box.sh(script).run().expect(0).text.splitlines() for _ in range(2))
    assert len(one) == len(other) == 3
    assert not set(one) & set(other)


@pytest.mark.only("runvm", "there is a hypervisor to confine")
def test_the_hypervisor_and_its_file_server_are_confined(box: Box) -> None:
    """Off /proc: the VMM isn't root, has no capabilities, no new privileges, seccomp, no view of the host's files."""
    found = host.processes_of(box.sleeper())
    vmm, server = found["vmm"], found["virtiofsd"]
    status = read_status(vmm)
    assert status["Uid"].split()[0] != "0", "an unprivileged user"
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert host.namespace(vmm, "mnt") != host.namespace("self", "mnt"), "no view of the host's files"
    assert not os.path.exists(f"/proc/{vmm}/root/root"), "and its root shows little"
    # QEMU 7.2's virtiofsd is two: the one that serves is the other's child, in the sandbox
    servers = [server, *process.descendants(server)]
    assert host.namespace(servers[-1], "mnt") != host.namespace("self", "mnt")
    assert read_status(servers[-1])["Seccomp"] == "2"


def read_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        pairs = (line.split(":", 1) for line in file)
        return {key: value.strip() for key, value in pairs}
