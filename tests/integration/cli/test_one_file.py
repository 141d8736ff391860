"""One file of the host is one file in the container, whichever of its mounts leads there."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from framework import rootfs
from framework.runtime import facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Container


def share(container: Container) -> str:
    """A directory of the host with a file `lk`, a directory `sub` with a file, and a tmpfs `mounted` with one."""
    top = f"{container.bundle.path}/shared"
    os.makedirs(f"{top}/sub/deeper")
    os.makedirs(f"{top}/mounted")
    subprocess.run(["mount", "-t", "tmpfs", "runvm-test", f"{top}/mounted"], check=True, timeout=10)
    for path in ("lk", "sub/file", "sub/deeper/file", "mounted/file"):
        with open(f"{top}/{path}", "w", encoding="ascii") as file:
            file.write(f"{path}\n")
    return top


PAIRS = {
    "a-file": ("/a/lk", "/one"),
    "the-same-file-twice-once-read-only": ("/one", "/one-ro"),
    "a-file-in-a-directory-that-is-shared-too": ("/a/sub/file", "/sub/file"),
    "by-a-read-only-directory": ("/a/sub/file", "/sub-ro/file"),
    "deeper": ("/a/sub/deeper/file", "/deeper/file"),
    "the-same-directory-twice-once-read-only": ("/a/lk", "/a-ro/lk"),
    "what-is-mounted-below": ("/a/mounted/file", "/mounted/file"),
    "in-the-root": ("/etc/thing", "/in-root/thing"),
}


@pytest.fixture(scope="module")
def seen(module_box: Box) -> Iterator[dict[str, str]]:
    """What a container sees that has many overlapping binds."""
    container = module_box()
    bundle = container.bundle
    rootfs.install(bundle.rootfs, "flock")
    top = share(container)
    with open(bundle.file("/etc/thing"), "w", encoding="ascii") as file:
        file.write("thing\n")
    # inner ones first: the order of the config doesn't matter
    bundle.bind(f"{top}/sub/deeper", "/deeper", "rbind", "rprivate")
    bundle.bind(f"{top}/lk", "/one", "bind")
    bundle.bind(f"{top}/lk", "/one-ro", "bind", "ro")
    bundle.bind(top, "/a", "rbind", "rprivate")
    bundle.bind(f"{top}/sub", "/sub", "rbind", "rprivate")
    bundle.bind(f"{top}/sub", "/sub-ro", "rbind", "rprivate", "ro")
    bundle.bind(top, "/a-ro", "rbind", "ro")
    bundle.bind(f"{top}/mounted", "/mounted", "bind")
    bundle.bind(f"{bundle.rootfs}/etc", "/in-root", "bind")
    commands = {}
    for name, (first, second) in PAIRS.items():
        commands[f"{name}:identity"] = f"stat -c '%d %i' {first} {second}"
        commands[f"{name}:lock"] = f"exec 9<{first}; flock 9; flock -n {second} echo BOTH"
    commands["cache"] = "echo new >/a/sub/file; cat /sub/file /sub-ro/file; echo newer >/sub/file; cat /a/sub/file"
    commands["read-only"] = "for f in /one-ro /sub-ro/file /a-ro/lk; do echo x >$f; done"
    commands["mounted"] = "echo x >/a-ro/mounted/file && cat /mounted/file"
    try:
        yield facts(container, commands)
    finally:
        subprocess.run(["umount", "-l", f"{top}/mounted"], check=True, timeout=10)


@pytest.mark.parametrize("name", PAIRS)
def test_two_mounts_lead_to_one_file(seen: dict[str, str], name: str) -> None:
    """Device and inode are the same, and a lock on the one is a lock on the other."""
    first, second = seen[f"{name}:identity"].splitlines()
    assert first == second
    assert seen[f"{name}:lock"] == ""


def test_what_is_written_by_one_mount_is_read_by_the_other_at_once(seen: dict[str, str]) -> None:
    """There is one page cache."""
    assert seen["cache"].split() == ["new", "new", "newer"]


def test_a_read_only_bind_of_what_is_writable_elsewhere_is_read_only(seen: dict[str, str]) -> None:
    """And what is mounted below a bind that is `ro`, not `rro`, keeps its own flags."""
    assert seen["read-only"].count("Read-only file system") == 3
    assert seen["mounted"] == "x"


@pytest.mark.only("runvm", "these are the paths in the guest")
def test_the_second_container_of_a_pod_sees_the_same_files(box: Box) -> None:
    """A path within what the first has is the first's own file; it stays when the first goes."""
    first = box.idle()
    rootfs.install(first.bundle.rootfs, "flock")
    top = f"{first.bundle.path}/shared"
    os.makedirs(f"{top}/sub")
    open(f"{top}/sub/lk", "wb").close()
    first.bundle.bind(top, "/a", "rbind")
    first.launch()
    second = box.idle()
    rootfs.install(second.bundle.rootfs, "flock")
    second.bundle.namespace("network", f"/proc/{first.init_pid}/ns/net")
    second.bundle.bind(f"{top}/sub", "/sub", "rbind")
    second.launch()
    assert first.sh("stat -c '%d %i' /a/sub/lk") == second.sh("stat -c '%d %i' /sub/lk")
    first.sh(
        "flock /a/sub/lk sh -c 'touch /a/held; exec sleep 1000' >/dev/null 2>&1 & while ! test -e /a/held; do :; done"
    )
    second.exec("flock", "-n", "/sub/lk", "true").expect(1)
    first.delete("--force")
    second.exec("flock", "-n", "/sub/lk", "true").expect(0)
    assert second.sh("echo still >/sub/lk; cat /sub/lk") == "still"
