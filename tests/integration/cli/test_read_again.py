"""What the guest has read of a shared file it keeps, and reads anew what the host has changed."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from framework import host, process, rootfs
from framework.runtime import HYPERVISOR
from runvm import config
from runvm.shares import virtiofs

if TYPE_CHECKING:
    from framework.runtime import Box, Container

SIZE = 8 << 20
TAKEN_FOR_TRUE_S = 1.2
"""Longer than a guest takes what it knows of a file for true."""


@pytest.fixture
def sharing(box: Box) -> Container:
    """A container with a directory of the host's at /shared."""
    container = box.idle()
    rootfs.install(container.bundle.rootfs, "cat")
    os.makedirs(f"{container.bundle.path}/shared")
    container.bundle.bind(f"{container.bundle.path}/shared", "/shared")
    return container


def read_by_daemon(container: Container) -> int:
    """Bytes that the container's virtiofsd has read so far (proc_pid_io(5)), of all its processes."""
    total = 0
    daemon = host.processes_of(container)["virtiofsd"]
    for pid in (daemon, *process.descendants(daemon)):
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            total += int(file.readline().split()[1])
    return total


@pytest.mark.only("runvm", "nothing is between a container and its files")
def test_a_file_is_read_from_the_host_once(sharing: Container) -> None:
    """As long as it stays as it is; for programs and their libraries too, which each start opens again."""
    if HYPERVISOR == "qemu" and virtiofs.release(config.load()):
        pytest.skip("virtiofsd in Rust: each open(2) drops what has been read (docs/limitations.md)")
    with open(f"{sharing.bundle.path}/shared/big", "wb") as file:
        file.write(os.urandom(SIZE))
    sharing.launch()
    before = read_by_daemon(sharing)
    sharing.sh("cat /shared/big >/dev/null")
    once = read_by_daemon(sharing)
    sharing.sh("cat /shared/big >/dev/null; cat /shared/big >/dev/null")
    assert once - before >= SIZE
    assert read_by_daemon(sharing) - once < SIZE / 4


def test_what_the_host_changes_is_read_anew(sharing: Container) -> None:
    """In place with the same length, replaced by another file, cut, longer."""
    path = f"{sharing.bundle.path}/shared/file"

    def in_place(text: str) -> None:
        with open(path, "r+", encoding="ascii") as file:
            file.write(text)
            file.truncate()

    def replace(text: str) -> None:
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write(text)
        os.rename(f"{path}.new", path)

    replace("first.")
    sharing.launch()
    assert sharing.sh("cat /shared/file") == "first."
    for change, text in ((in_place, "second"), (replace, "third."), (in_place, "4"), (in_place, "the fifth one")):
        change(text)
        time.sleep(TAKEN_FOR_TRUE_S)
        assert sharing.sh("cat /shared/file; cat /shared/file") == text * 2
