"""What a container may do: devices, security options, users, and namespaces that aren't its own."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from framework.docker import IMAGE, Dockerd, missing
from framework.engine import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Runtime

REMAPPED = 231072
"""The first host id of the daemon that remaps users."""


def test_devices_that_every_linux_has(docker: Dockerd) -> None:
    """--device with another name and rights, --device-cgroup-rule: what they allow works, the rest is denied."""
    script = """
    ls -l /dev/net/tun /dev/other | cut -c 1
    (exec 3</dev/other && echo open); (echo x >/dev/other)
    mknod /full c 1 7 && echo x 2>&1 >/full; mknod /mem c 1 1 && head -c 1 /mem 2>&1
    """
    result = docker.run(
        *("--device", "/dev/net/tun", "--device", "/dev/fuse:/dev/other:r"),
        *("--device-cgroup-rule", "c 1:7 w", "--cap-add", "SYS_RAWIO", IMAGE, "sh", "-c", script),
    )
    lines = result.stdout.decode().splitlines()
    assert lines[:3] == ["c", "c", "open"], result.describe()
    shown = "\n".join(lines[3:]) + result.stderr.decode()
    assert "can't create /dev/other: Operation not permitted" in shown
    assert "No space left" in shown
    assert "/mem: Operation not permitted" in shown


@pytest.mark.only("runvm", "a virtual machine has none of the host's devices")
def test_a_device_of_the_host_is_refused(docker: Dockerd) -> None:
    """--device of a disk: 125 and its name, nothing started; the engine itself refuses --gpus."""
    disk = next(f"/dev/{name}" for name in os.listdir("/sys/class/block") if os.path.exists(f"/dev/{name}")
                and not name.startswith("loop"))  # fmt: skip
    result = docker.run("--device", disk, IMAGE, "true")
    assert result.code == 125
    assert f"device {disk}" in result.stderr.decode()
    assert "virtual machine" in result.stderr.decode()


def test_gpus_are_refused(docker: Dockerd) -> None:
    """--gpus all: 125, since no driver hands them out."""
    result = docker.run("--gpus", "all", IMAGE, "true")
    assert result.code == 125
    assert b"could not select device driver" in result.stderr


def test_security_options_that_unconfine(docker: Dockerd, grants_all: None) -> None:
    """seccomp, AppArmor and labels off, nothing of /proc hidden or read-only; no-new-privileges isn't implied."""
    script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; grep -c ' /proc/' /proc/mounts; unshare -U id -u"
    words = [word for option in ("seccomp=unconfined", "apparmor=unconfined", "label=disable", "systempaths=unconfined")
             for word in ("--security-opt", option)]  # fmt: skip
    shown = docker.run(*words, IMAGE, "sh", "-c", script).stdout.decode().splitlines()
    assert [line.split() for line in shown[:2]] == [["NoNewPrivs:", "0"], ["Seccomp:", "0"]]
    assert shown[2:] == ["0", "65534"]
    confined = docker.run(IMAGE, "sh", "-c", script)
    assert "Seccomp:\t2" in confined.text
    assert b"unshare" in confined.stderr


def test_users_by_name_and_group(docker: Dockerd) -> None:
    """--user name:group and --user name, whose further groups come from the image; exec -u by name."""
    docker.detached("--name", "mine", "--user", "user", "--group-add", "nogroup", IMAGE, "sleep", "1000")
    assert docker.ok("exec", "mine", "sh", "-c", "id -u; id -G").split() == ["1000", "1000", "2000", "65534"]
    assert docker.ok("exec", "--user", "nobody:user", "mine", "sh", "-c", "id -u; id -g").split() == ["65534", "1000"]
    assert docker.ok("exec", "--user", "0", "mine", "id", "-u") == "0"
    assert docker.run("--user", "stranger", IMAGE, "true").code == 125


def test_private_and_other_namespaces_by_name(docker: Dockerd) -> None:
    """--ipc private and none, --cgroupns and --userns in their own ways: each starts, with what the words say."""
    flags = ("--ipc", "private", "--cgroupns", "private", "--userns", "host")
    script = "grep -c ' /dev/shm ' /proc/mounts; cat /proc/self/cgroup | grep -v ':/$'; cat /proc/self/uid_map"
    shown = docker.run(*flags, IMAGE, "sh", "-c", script).expect(0).text.split()
    assert shown == ["1", "0", "0", "4294967295"]
    assert docker.run("--ipc", "none", IMAGE, "grep", "-c", " /dev/shm ", "/proc/mounts").text == "0"


@pytest.mark.only("runvm", "the host's namespaces are the virtual machine's")
def test_the_hosts_namespaces_are_the_machines(docker: Dockerd) -> None:
    """--pid host and --cgroupns host show the guest's processes and none of the host's; --uts host has its name."""
    flags = ("--pid", "host", "--uts", "host", "--cgroupns", "host")
    shown = docker.run(*flags, IMAGE, "sh", "-c", "hostname; ps -o pid,comm").expect(0).text
    lines = shown.splitlines()
    assert lines[0] == os.uname().nodename
    assert any("kthreadd" in line for line in lines)
    assert "dockerd" not in shown
    assert "pytest" not in shown


@pytest.fixture(scope="module")
def remapping(runtime: Runtime, scratch: str, template: str) -> Iterator[Dockerd]:
    """A dockerd whose containers' users are others on the host."""
    if name := missing():
        pytest.skip(f"{name} isn't installed: apt-get install docker.io")
    daemon = Dockerd(
        f"{scratch}/remap", runtime, template, options={"userns-remap": "nobody:nogroup", "live-restore": False}
    )
    saved = {}
    for path in ("/etc/subuid", "/etc/subgid"):
        with open(path, encoding="utf-8") as file:
            saved[path] = file.read()
        if "nobody:" in saved[path]:
            pytest.skip(f"{path} has ids of nobody already")
    with ExitStack() as undo:
        try:
            for path in saved:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(f"nobody:{REMAPPED}:65536\n")
            undo.enter_context(opened(daemon))
        finally:
            for path, text in saved.items():  # the daemon has read them
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
        yield daemon


def test_a_daemon_that_remaps_users(remapping: Dockerd, runtime: Runtime, tmp_path: os.PathLike[str]) -> None:
    """userns-remap: root inside is another user on the host, in the root filesystem, on volumes and on the share."""
    os.chmod(tmp_path, 0o777)
    script = "cat /proc/self/uid_map; id -u; stat -c %u /etc/passwd; touch /new /v/new; stat -c %u /new /v/new"
    docker = remapping
    result = docker.run("--volume", f"{os.fspath(tmp_path)}:/v", IMAGE, "sh", "-c", script).expect(0)
    lines = result.text.splitlines()
    assert lines[0].split() == ["0", str(REMAPPED), "65536"]
    assert lines[1:] == ["0", "0", "0", "0"]
    assert os.stat(os.path.join(tmp_path, "new")).st_uid == REMAPPED
    docker.detached("--name", "remapped", IMAGE, "sleep", "1000")
    assert docker.ok("exec", "--user", "1000", "remapped", "sh", "-c", "id -u; touch /tmp/x; stat -c %u /tmp/x") == (
        "1000\n1000"
    )
    assert docker.run("--userns", "host", IMAGE, "cat", "/proc/self/uid_map").text.split() == ["0", "0", "4294967295"]
    docker.ok("rm", "--force", "remapped")
    # docs/limitations.md: in a VM the network is the guest's root's
    changed = docker.run("--cap-add", "NET_ADMIN", IMAGE, "ip", "link", "set", "eth0", "mtu", "1400")
    assert (changed.code == 0) != runtime.is_vm
