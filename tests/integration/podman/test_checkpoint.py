"""podman container checkpoint and restore, with and without an archive. Podman itself asks for CRIU's program."""

from __future__ import annotations

import itertools
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from framework.podman import IMAGE
from framework.process import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from framework.podman import Podman
    from framework.runtime import Runtime

pytestmark = pytest.mark.only("runvm", "runc has CRIU for it, which doesn't do in every kernel")

COUNTER = "exec 3>>/log; n=0; while :; do n=$((n + 1)); echo $n >&3; echo $n; sleep 0.2; done"


@pytest.fixture(autouse=True)
def supported(runtime: Runtime) -> None:
    """Skip where something that it takes isn't there."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")
    if shutil.which("criu") is None:
        pytest.skip("criu isn't installed, whose version Podman wants to know: apt-get install criu")


def numbers(podman: Podman, name: str) -> list[int]:
    """What the counter has logged."""
    return [int(line) for line in podman.ok("logs", name).split()]


def counted(podman: Podman, name: str, more: int = 3) -> None:
    """Until it has counted on."""
    count = len(numbers(podman, name))
    wait_until(lambda: len(numbers(podman, name)) > count + more, timeout=60, what=f"the counter of {name}")


def test_a_container_goes_on_from_its_checkpoint(podman: Podman) -> None:
    """checkpoint stops it; restore lets it go on with the next number; with --keep once more, by other flags."""
    podman.detached("--name", "counts", IMAGE, "sh", "-c", COUNTER)
    counted(podman, "counts")
    for flags in ((), ("--keep",)):
        podman.ok("container", "checkpoint", "--file-locks", *flags, "counts")
        assert podman.ok("inspect", "--format", "{{.State.Status}} {{.State.Checkpointed}}", "counts") == "exited true"
        podman.ok("container", "restore", *flags, "counts")
        counted(podman, "counts")
    found = numbers(podman, "counts")
    assert found == list(range(1, len(found) + 1))
    assert podman.ok("exec", "counts", "tail", "-n", "1", "/log").isdigit()
    assert podman.ok("inspect", "--format", "{{.State.Status}}", "counts") == "running"


def test_an_archive_is_restored_under_several_names(podman: Podman, tmp_path: Path) -> None:
    """--export with --leave-running: the container goes on, and so do two others, with what it had written."""
    podman.detached(
        "--name", "origin", IMAGE, "sh", "-c", f"mkdir /made; echo kept >/made/file; rm /etc/group; {COUNTER}"
    )
    counted(podman, "origin")
    archive = str(tmp_path / "archive.tar.zst")
    podman.ok("container", "checkpoint", "--leave-running", "--export", archive, "origin")
    counted(podman, "origin")
    found = numbers(podman, "origin")
    assert found == list(range(1, len(found) + 1))
    for name in ("one", "two"):
        podman.ok("container", "restore", "--import", archive, "--name", name)
        counted(podman, name)
        seen = numbers(podman, name)
        # the archive has the log, too, which had gone on while the archive was made
        jumps = [after for before, after in itertools.pairwise(seen) if after != before + 1]
        assert len(jumps) <= 1
        assert all(1 < number <= found[-1] for number in jumps), seen
        assert (
            podman.ok("exec", name, "sh", "-c", "cat /made/file; ls /etc/group 2>/dev/null || echo gone")
            == "kept\ngone"
        )
    podman.ok("exec", "one", "sh", "-c", "echo mine >/made/file")
    assert podman.ok("exec", "two", "cat", "/made/file") == "kept"
    podman.ok("rm", "--force", "--time", "0", "origin")
    podman.ok("container", "restore", "--import", archive)
    counted(podman, "origin")


def test_a_connection_goes_on(podman: Podman) -> None:
    """--tcp-established: the container has its address again, and who is connected doesn't notice."""
    serve = "n=0; while read line; do n=$((n+1)); echo $n $line; done"
    podman.detached("--name", "serves", IMAGE, "nc", "-l", "-p", "80", "-e", "sh", "-c", serve)
    address = podman.ok("inspect", "--format", "{{.NetworkSettings.IPAddress}}", "serves")
    with socket.socket() as client:
        client.settimeout(60)
        wait_until(lambda: client.connect_ex((address, 80)) == 0, timeout=20, what="the server")
        client.sendall(b"one\n")
        assert client.recv(100) == b"1 one\n"
        podman.ok("container", "checkpoint", "--tcp-established", "serves")
        podman.ok("container", "restore", "--tcp-established", "serves")
        assert podman.ok("inspect", "--format", "{{.NetworkSettings.IPAddress}}", "serves") == address
        client.sendall(b"two\n")
        assert client.recv(100) == b"2 two\n"
