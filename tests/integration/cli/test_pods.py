"""Pods by CRI-O's conventions: its annotations, namespaces held by bind mounts, pods without a pause program."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from framework.runtime import Box, Container

SANDBOX = "5a" * 32
BOOT = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[dict[str, str]]:
    """New network, IPC and UTS namespaces, pinned as CRI-O's pinns does: by type, the path."""
    paths = {"network": f"{tmp_path}/net", "ipc": f"{tmp_path}/ipc", "uts": f"{tmp_path}/uts"}
    for path in paths.values():
        with open(path, "wb"):
            pass
    holder = subprocess.Popen(["unshare", "--net", "--ipc", "--uts", "sleep", "100"])
    try:
        for kind, path in paths.items():
            source = f"/proc/{holder.pid}/ns/{'net' if kind == 'network' else kind}"
            own = f"/proc/self/ns/{'net' if kind == 'network' else kind}"
            _wait_other(source, own)
            subprocess.run(["mount", "--bind", source, path], check=True, timeout=10)
    finally:
        holder.kill()
        holder.wait()
    yield paths
    for path in paths.values():
        subprocess.run(["umount", "--lazy", path], check=False, timeout=10)


def _wait_other(source: str, own: str) -> None:
    wait_until(lambda: os.stat(source).st_ino != os.stat(own).st_ino, timeout=10, what="unshare's namespaces")


def _member(box: Box, pinned: dict[str, str], kind: str = "container") -> Container:
    container = box.idle()
    for name, path in pinned.items():
        container.bundle.namespace(name, path)
    container.bundle.config["annotations"] = {
        "io.kubernetes.cri-o.ContainerType": kind,
        "io.kubernetes.cri-o.SandboxID": SANDBOX,
    }
    return container


@pytest.mark.only("runvm", "its guests have a loopback interface that is up")
@pytest.mark.parametrize("first", ["sandbox", "container"])
def test_a_pod_of_pinned_namespaces_is_one_vm(box: Box, pinned: dict[str, str], first: str) -> None:
    """With an infra container, and, as CRI-O has it where the PID namespace isn't shared, without one."""
    one = _member(box, pinned, first).launch()
    two = _member(box, pinned).launch()
    assert one.sh(BOOT) == two.sh(BOOT)
    one.sh("httpd -p 127.0.0.1:8000 -h /etc; touch /dev/shm/own")
    assert two.sh("wget -q -O - http://127.0.0.1:8000/hostname") == "rootfs"
    one.kill(9)
    one.wait_status("stopped")
    one.delete()
    assert two.sh(BOOT)
    three = _member(box, pinned).launch()
    assert three.sh(BOOT) == two.sh(BOOT)


def test_a_member_is_made_anew_at_once_under_its_name(box: Box, pinned: dict[str, str]) -> None:
    """As a restart policy does it: the guest remembers names of shared files for a second, those of the old one too."""
    one = _member(box, pinned).launch()
    two = _member(box, pinned)
    for _ in range(3):
        two.launch()
        assert two.sh("cat /etc/hostname") == one.sh("cat /etc/hostname")
        two.delete("--force")


@pytest.mark.only("runvm", "which VM a container is in")
def test_annotations_alone_place_a_container_in_its_pod(box: Box, pinned: dict[str, str]) -> None:
    """Namespaces of its own, yet of the same pod: the same VM."""
    one = _member(box, pinned).launch()
    two = _member(box, {}).launch()
    assert one.sh(BOOT) == two.sh(BOOT)
    assert one.sh("readlink /proc/self/ns/net") != two.sh("readlink /proc/self/ns/net")


@pytest.mark.only("runvm", "namespaces of other processes can't be joined by a VM")
def test_an_ipc_namespace_of_another_runtimes_container_is_refused(box: Box) -> None:
    """A path of a process tells a pod whose pause program another runtime has started."""
    holder = subprocess.Popen(["unshare", "--ipc", "sleep", "100"])
    try:
        _wait_other(f"/proc/{holder.pid}/ns/ipc", "/proc/self/ns/ipc")
        container = _member(box, {"ipc": f"/proc/{holder.pid}/ns/ipc"})
        result = container.try_create()
    finally:
        holder.kill()
        holder.wait()
    assert result.code != 0
    assert b"isn't a runvm container's" in result.stderr
