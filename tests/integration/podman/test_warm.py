"""podman run --annotation io.runvm.warm: later containers of an image go on from the first one, once that was ready."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from framework.podman import IMAGE
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.podman import Podman
    from framework.runtime import Runtime

pytestmark = pytest.mark.only("runvm", "other runtimes have no warm starts")

PROGRAM = """
echo begins; mkdir /made; exec 3>/made/log; sleep 1; touch /ready
n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done
"""


def warmed(runtime: Runtime) -> list[dict[str, Any]]:
    """What `template list` has of warm containers."""
    return [
        entry for entry in runtime.ok("template", "list", "--format", "json").json() if "warm" in entry["made_from"]
    ]


@pytest.fixture(autouse=True)
def supported(runtime: Runtime) -> Iterator[None]:
    """Skip where something is too old; afterwards what was kept goes."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")
    yield
    for entry in warmed(runtime):
        shutil.rmtree(entry["directory"])


def test_a_container_starts_warm(podman: Podman, runtime: Runtime) -> None:
    """Its name, address and files are its own."""
    flags = ("--annotation", "io.runvm.warm=/ready")
    podman.detached(*flags, "--name", "first", IMAGE, "sh", "-c", PROGRAM)
    podman.wait_log("first", "begins")
    wait_until(lambda: len(warmed(runtime)) == 1, timeout=90, what="the checkpoint", interval=0.3)
    for name in ("one", "two"):
        podman.detached(*flags, "--name", name, IMAGE, "sh", "-c", PROGRAM)
        wait_until(lambda: len(podman.ok("logs", name).split()) > 3, timeout=60, what="its output")  # noqa: B023
        numbers = [int(word) for word in podman.ok("logs", name).split()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        details = podman.inspect(name)
        assert podman.ok("exec", name, "hostname") == details["Config"]["Hostname"]
        assert details["NetworkSettings"]["IPAddress"] in podman.ok("exec", name, "ip", "address", "show", "eth0")
        assert podman.ok("exec", name, "ls", "/made") == "log"
    assert len(warmed(runtime)) == 1
