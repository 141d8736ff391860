"""What a virtiofsd says while its state is saved: the files that it can't tell another one of."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from runvm.config import Config
from runvm.shares import virtiofs

if TYPE_CHECKING:
    from pathlib import Path

SAID = (
    b"[WARN  virtiofsd::vhost_user] Front-end did not announce migration to begin\n"
    b"[ERROR virtiofsd::passthrough::device_state::preserialization::proc_paths] Inode 16: Failed to get path from"
    b" /proc/self/fd: Inode deleted (/containers/c1.0a/rootfs/a (b))\n"
    b"[WARN  virtiofsd::passthrough::device_state::serialization] Failed to serialize inode 16 (st_dev=81): Failed to"
    b" reconstruct inode location; marking as invalid\n"
)


def daemon(tmp_path: Path, output: int) -> virtiofs.Daemon:
    ours, theirs = socket.socketpair()
    theirs.close()
    return virtiofs.Daemon(0, ours, output, f"{tmp_path}/log")


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        (SAID, ["/containers/c1.0a/rootfs/a (b)"]),
        (SAID.replace(b"/a (b)", b"/\x1b]0;a\x07"), ["/containers/c1.0a/rootfs/?]0;a?"]),
        (SAID.splitlines(True)[2], ["?"]),
        (SAID.splitlines(True)[0], []),
        (b"", []),
    ],
)
def test_files_that_are_lost_are_named(tmp_path: Path, said: bytes, lost: list[str]) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    found = daemon(tmp_path, reader)
    os.write(writer, b"marking as invalid, before\n")
    found.keep_output()
    found.listen()
    os.write(writer, said)
    assert found.lost() == lost
    assert found.lost() == []
    found.socket.close()
    os.close(writer)
    os.close(reader)


def test_a_daemon_of_which_version_is_new_enough(tmp_path: Path) -> None:
    for told, enough in (("1.13.0", True), ("1.11.0", True), ("1.10.1", False), ("2.0.0", True), ("", False)):
        program = tmp_path / f"virtiofsd-{told}"  # each is asked once
        program.write_text(f"#!/bin/sh\necho virtiofsd {told}\n")
        program.chmod(0o755)
        lacks = virtiofs.checkpoint_lacks(Config(virtiofsd=str(program)))
        assert (not lacks) == enough, told
        assert enough or f"virtiofsd 1.11 or later, and {program} is" in lacks
