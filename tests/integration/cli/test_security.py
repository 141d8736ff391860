"""What a config.json, a root filesystem or a container may not reach."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest

from framework import host, process, rootfs
from framework.runtime import HYPERVISOR, facts
from runvm.linux.architecture import host as host_architecture

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
    """The boot id and the machine's memory aren't the host's; the release may be."""
    result = box.sh(f"cat {host.BOOT_ID}; grep MemTotal /proc/meminfo").run().expect(0)
    booted, memory = result.text.splitlines()
    assert booted != host.boot_id()
    assert int(memory.split()[1]) < 4 << 20


@pytest.mark.only("runvm", "there is a guest whose random state could be a clone's")
def test_two_containers_dont_share_random_state_or_identity(box: Box) -> None:
    """VMs restored from one template differ in random bytes, boot id, address layout; clocks are the host's, and go."""
    commands = {
        "urandom": "head -c 16 /dev/urandom | xxd -p",
        "boot_id": "cat /proc/sys/kernel/random/boot_id",
        "uuid": "cat /proc/sys/kernel/random/uuid",
        "stack": "grep -F '[stack]' /proc/self/maps",
        "vdso": "grep -F '[vdso]' /proc/self/maps",
        "auxv": "md5sum </proc/self/auxv",  # the address of AT_RANDOM's bytes, which are the stack canary's
    }
    if HYPERVISOR == "uml":
        del commands["vdso"]  # which has one place there, whatever the process
    begun = time.time()
    one, other = (facts(box(), commands | {"time": "date +%s", "uptime": "cat /proc/uptime"}) for _ in range(2))
    for name in commands:
        assert one[name] != other[name], name
    for found in (one, other):
        assert begun - 2 <= int(found["time"]) <= time.time() + 2
        assert 0 < float(found["uptime"].split()[0]) < 600
    assert int(one["time"]) <= int(other["time"])


@pytest.mark.only("runvm", "there is a guest")
def test_two_guests_are_two_machines(box: Box, runtime: Runtime) -> None:
    """Beside the agent, in the guest itself: the machine-id is the clone's own."""
    found = []
    for _ in range(2):
        container = box.sleeper()
        result = runtime.call("debug", "shell", container.id, "cat", "/etc/machine-id").expect(0)
        found.append(result.text)
    assert all(len(text) == 32 for text in found)
    assert found[0] != found[1]


@pytest.mark.skipif(HYPERVISOR == "uml", reason="User Mode Linux has a test of its own: test_uml.py")
@pytest.mark.only("runvm", "there is a hypervisor to confine")
def test_the_hypervisor_and_its_file_server_are_confined(box: Box) -> None:
    """Off /proc: users, capabilities, privileges, seccomp, namespaces, descriptors, and what they see of the host."""
    containers = [box.sleeper(), box.sleeper()]
    vmms = [host.processes_of(container)["vmm"] for container in containers]
    assert len({read_status(vmm)["Uid"] for vmm in vmms}) == 2, "a user of its own each"
    vmm = vmms[0]
    status = read_status(vmm)
    assert "0" not in status["Uid"].split() + status["Gid"].split(), "an unprivileged user"
    assert status["Groups"] == ""
    for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(status[kind], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for kind in ("mnt", "net", "ipc", "uts"):
        assert host.namespace(vmm, kind) != host.namespace("self", kind)
    with open(f"/proc/{vmm}/net/dev", encoding="ascii") as file:
        assert [line.split(":")[0].strip() for line in file if ":" in line] == ["lo"]
    assert set(os.listdir(f"/proc/{vmm}/root")) <= {"bin", "lib", "lib64", "sbin", "usr", "ram", "more"}
    with open(f"/proc/{vmm}/mountinfo", encoding="utf-8") as file:
        mounts = [line.split() for line in file]
    assert all(fields[5].startswith("ro,") for fields in mounts if fields[4] != "/")
    assert not {fields[4].split("/")[1] for fields in mounts} - {"", "usr", "lib", "lib64"}
    kinds = re.compile(r"/dev/(null|net/tun)|socket:.*|anon_inode:.*|pipe:.*|/ram|/more|.*/vmm\.log")
    assert [path for path in process.open_files(vmm) if not kinds.fullmatch(path)] == []


@pytest.mark.only("runvm", "there is a file server to confine")
def test_the_file_server_sees_the_served_files_alone(box: Box) -> None:
    """virtiofsd, off /proc: a root with its one VM's files, no device of the host's, few capabilities, no network."""
    containers = [box.sleeper(), box.sleeper()]
    container = containers[0]
    container.bundle.save()
    # QEMU 7.2's virtiofsd is two: the one that serves is the other's child, in the sandbox
    server = host.processes_of(container)["virtiofsd"]
    server = [server, *process.descendants(server)][-1]
    status = read_status(server)
    assert status["Seccomp"] == "2"
    dangerous = (2, 5, 12, 16, 17, 18, 19, 21)  # READ_SEARCH KILL NET_ADMIN MODULE RAWIO CHROOT PTRACE SYS_ADMIN
    assert not any(int(status["CapEff"], 16) >> number & 1 for number in dangerous)
    for kind in ("mnt", "net", "pid"):
        assert host.namespace(server, kind) != host.namespace("self", kind)
    modules = set() if HYPERVISOR == "uml" else {"modules"}
    assert set(os.listdir(f"/proc/{server}/root")) == {"containers", "shared"} | modules
    shared = os.listdir(f"/proc/{server}/root/containers")
    assert [name.rpartition(".")[0] for name in shared] == [container.id], "no other virtual machine's"
    with open(f"/proc/{server}/mountinfo", encoding="utf-8") as file:
        assert all("nodev" in line.split()[5].split(",") for line in file)
    container.sh("mknod /tmp/null c 1 3")
    node = f"/proc/{server}/root/containers/{shared[0]}/rootfs/tmp/null"
    assert stat.S_ISCHR(os.stat(node).st_mode)
    with pytest.raises(PermissionError):
        os.open(node, os.O_RDONLY)
    assert container.sh("ls -l /tmp/null | cut -c 1") == "c", "while the guest has it"


@pytest.mark.only("runvm", "its own ids")
def test_an_id_is_one_plain_name(box: Box, runtime: Runtime) -> None:
    """Dots, slashes, lengths and letters that a directory of its own can't have: refused, with nothing made."""
    container = box("true")
    container.bundle.save()
    before = sorted(os.listdir(runtime.root))
    for name in ("..", ".", "", "a/b", "../x", "/etc", "x" * 256, "\u00e9", "a b", "a\nb", "$(id)", "a\u2028b"):
        for command in (("create", "--bundle", container.bundle.path), ("delete", "--force"), ("state",)):
            result = runtime.call(*command, name)
            assert result.code == 1, (command, name)
            assert "container id" in result.error.lower(), result.describe()
    assert sorted(os.listdir(runtime.root)) == before


@pytest.mark.only("runvm", "it follows no link")
def test_a_pid_file_is_written_through_no_link(box: Box, outside: str) -> None:
    """In a directory that others can write, links at its name and at the temporary one's: neither is followed."""
    container = box("true")
    directory = os.path.dirname(container.pid_file)
    for name in (container.pid_file, f"{directory}/.{os.path.basename(container.pid_file)}"):
        os.symlink(f"{outside}/precious", name)
    container.create()
    assert untouched(outside)
    assert not os.path.islink(container.pid_file)


def test_an_image_whose_system_directories_lead_out_does_no_harm(box: Box, outside: str) -> None:
    """/proc, /sys and /dev are links to a directory of the host: the host has nothing mounted or made there."""
    container = box.sh("echo ran")
    for name in ("proc", "sys", "dev"):
        path = f"{container.bundle.rootfs}/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        os.symlink(outside, path)
    result = container.run()
    assert untouched(outside)
    assert result.code in (0, 1), result.describe()
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert outside not in file.read()


def read_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        pairs = (line.split(":", 1) for line in file)
        return {key: value.strip() for key, value in pairs}


CALLS = """for (@ARGV) { $! = 0; syscall($_, 0, 0, 0, 0); print "$_ ", $! + 0, "\\n" }"""
MOUNT, DELETE_MODULE = ("40", "106") if (rootfs.ARCH or host_architecture()) == "arm64" else ("165", "176")
NEWER, NEWEST = "500", "999"


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_system_calls_newer_than_the_profile_do_not_exist(box: Box, no_new_privileges: bool) -> None:
    """Under Docker's profile: ENOSYS, by which libraries know to do without; EPERM for what it refuses. So in exec."""
    profile = dockers_profile()
    container = box("sleep", "1000")
    rootfs.install_perl(container.bundle.rootfs)
    container.bundle.process["noNewPrivileges"] = no_new_privileges
    container.bundle.linux["seccomp"] = profile
    wanted = [f"{MOUNT} 1", f"{DELETE_MODULE} 1", f"{NEWER} 38", f"{NEWEST} 38"]
    call = ["perl", "-e", CALLS, MOUNT, DELETE_MODULE, NEWER, NEWEST]
    container.launch()
    assert container.exec(*call).expect(0).text.splitlines() == wanted
    alone = box(*call)
    rootfs.install_perl(alone.bundle.rootfs)
    alone.bundle.process["noNewPrivileges"] = no_new_privileges
    alone.bundle.linux["seccomp"] = profile
    assert alone.run().expect(0).text.splitlines() == wanted


def dockers_profile() -> dict[str, Any]:
    """As dockerd puts it into config.json on this architecture."""
    path = os.path.join(os.path.dirname(__file__), "../../unit/oci/data/callers/docker-run.json")
    with open(path, encoding="utf-8") as file:
        profile: dict[str, Any] = json.load(file)["linux"]["seccomp"]
    profile["syscalls"].append({"names": ["arch_prctl", "modify_ldt"], "action": "SCMP_ACT_ALLOW"})
    return profile
