"""What is read-only in a container is read-only for the guest's kernel as well: a guest that was taken over writes by
its own mounts of the share, where none of the container's flags are."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.host import processes_of
from framework.process import children

if TYPE_CHECKING:
    from framework.runtime import Box, Container, Runtime

pytestmark = pytest.mark.only("runvm", "there is a guest")

SHARE = "/run/share"


def guest(runtime: Runtime, container: Container, script: str) -> str:
    """What a shell script prints that root runs in the guest, outside the container, and its errors."""
    result = runtime.call("debug", "shell", container.id, "sh", "-c", f"exec 2>&1; {script}")
    return result.stdout.decode(errors="replace")


def test_no_kind_of_read_only_share_is_written_by_the_guests_kernel(box: Box, runtime: Runtime) -> None:
    """A directory, a file, what is mounted below (`rro`), the modules, and the share's own directory, whose names and
    links the supervisor follows."""
    container = box.idle()
    bundle = container.bundle
    top = f"{bundle.path}/shared"
    os.makedirs(f"{top}/mounted")
    open(f"{bundle.path}/file", "wb").close()
    subprocess.run(["mount", "-t", "tmpfs", "runvm-test", f"{top}/mounted"], check=True, timeout=10)
    try:
        bundle.bind(top, "/rro", "rbind", "rro")
        bundle.bind(top, "/ro", "rbind", "ro")
        bundle.bind(f"{bundle.path}/file", "/file", "bind", "ro")
        container.launch()
        place = guest(runtime, container, f"echo {SHARE}/containers/*").strip()
        names = guest(runtime, container, f"cd {place}; ls | grep m").split()
        said = guest(
            runtime,
            container,
            f"for d in {SHARE} {SHARE}/* {SHARE}/shared/* {place}; do"
            " mount -o remount,rw $d 2>/dev/null; chmod 700 $d; touch $d/made; mkdir $d/made; ln -s / $d/made; done; "
            f"for n in {' '.join(names)}; do mount -o remount,rw {place}/$n 2>/dev/null; echo x >>{place}/$n;"
            f" touch {place}/$n/made {place}/$n/mounted/made; rm {place}/$n; done;"
            f" mv {place} {SHARE}/elsewhere; rm -r {place}",
        )
        assert said.count("Read-only file system") > 20
        assert os.listdir(top) == ["mounted"]
        # plain `ro` leaves what is mounted below as it is: that one may be written
        assert os.listdir(f"{top}/mounted") == ["made"]
        assert os.stat(f"{bundle.path}/file").st_size == 0
        assert place in guest(runtime, container, f"echo {SHARE}/containers/*")
    finally:
        container.close()
        subprocess.run(["umount", "-l", f"{top}/mounted"], check=True, timeout=10)


def test_the_daemons_own_mounts_are_read_only(box: Box, runtime: Runtime) -> None:
    """In virtiofsd's mount namespace, also for a container that comes into a running virtual machine."""
    first = box.sleeper()
    second = box.idle()
    second.bundle.namespace("network", f"/proc/{first.init_pid}/ns/net")
    source = f"{second.bundle.path}/late"
    os.makedirs(source)
    second.bundle.bind(source, "/late", "rbind", "ro")
    second.launch()
    lines = daemon_mounts(first)
    # a mount's root is told from the root of its own file system, which may be /tmp
    tail = "/".join(source.split("/")[-2:])
    (late,) = (line.split() for line in lines if line.split()[3].endswith(tail))
    assert "ro" in late[5].split(",")
    (top,) = (line.split() for line in lines if line.split()[4] == "/")
    assert "ro" in top[5].split(",")


def daemon_mounts(container: Container) -> list[str]:
    """The lines of mountinfo of the virtiofsd that serves, which is the child in namespaces of its own."""
    daemon = processes_of(container)["virtiofsd"]
    pid = max((daemon, *children(daemon)))
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
        return file.read().splitlines()


def test_a_read_only_root_is_not_written_by_the_guests_kernel(box: Box, runtime: Runtime) -> None:
    """Nor by who joins the mount namespace that stands for the container's on the host."""
    container = box.idle()
    container.bundle.config["root"]["readonly"] = True
    container.launch()
    root = f"$(echo {SHARE}/containers/*/rootfs)"
    said = guest(
        runtime, container, f"mount -o remount,rw {root}; touch {root}/made; mkdir {root}/etc/made; rm {root}/bin/sh"
    )
    assert said.count("Read-only file system") == 3
    if not rootfs.ARCH:  # else the host can't run the root's shell
        argv = ["nsenter", "-t", str(container.init_pid), "-m", "/bin/sh", "-c", "touch /made"]
        assert b"Read-only" in subprocess.run(argv, capture_output=True, timeout=30).stderr
    assert not os.path.exists(f"{container.bundle.rootfs}/made")
    (line,) = (line.split() for line in daemon_mounts(container) if line.split()[4].endswith("/rootfs"))
    assert "ro" in line[5].split(",")
