"""docker checkpoint create, ls, rm and docker start --checkpoint, with a daemon that has experimental features on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from framework.docker import IMAGE, Dockerd
from framework.engine import opened
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Runtime

pytestmark = pytest.mark.only("runvm", "runc has CRIU for it, which isn't everywhere")

COUNTER = "exec 3>>/log; n=0; while :; do n=$((n + 1)); echo $n >&3; echo $n; sleep 0.2; done"


@pytest.fixture(scope="module")
def docker(runtime: Runtime, scratch: str, template: str) -> Iterator[Dockerd]:
    """A daemon that knows checkpoints."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")
    options: dict[str, object] = {"experimental": True}
    with opened(Dockerd(f"{scratch}/docker-experimental", runtime, template, options=options)) as daemon:
        yield daemon


def numbers(docker: Dockerd, name: str) -> list[int]:
    """What the counter has logged."""
    return [int(line) for line in docker.ok("logs", name).split()]


def test_a_container_is_checkpointed_and_started_from_there(docker: Dockerd) -> None:
    """It stops with the checkpoint, is listed, starts from it with the next number, and again from a second one."""
    docker.ok("run", "--detach", "--name", "counts", IMAGE, "sh", "-c", COUNTER)
    wait_until(lambda: len(numbers(docker, "counts")) > 3, timeout=30, what="the counter")
    for name in ("one", "two"):
        docker.ok("checkpoint", "create", "counts", name)
        assert name in docker.ok("checkpoint", "ls", "counts")
        assert docker.ok("inspect", "--format", "{{.State.Status}}", "counts") == "exited"
        count = len(numbers(docker, "counts"))
        docker.ok("start", "--checkpoint", name, "counts")
        wait_until(lambda: len(numbers(docker, "counts")) > count + 3, timeout=30, what="the restored counter")  # noqa: B023
    found = numbers(docker, "counts")
    assert found == list(range(1, len(found) + 1))
    assert docker.ok("exec", "counts", "tail", "-n", "1", "/log").isdigit()
    docker.ok("checkpoint", "rm", "counts", "one")
    assert "one" not in docker.ok("checkpoint", "ls", "counts")


def test_a_container_goes_on_after_a_checkpoint(docker: Dockerd) -> None:
    """--leave-running."""
    docker.ok("run", "--detach", "--name", "goes-on", IMAGE, "sh", "-c", COUNTER)
    wait_until(lambda: len(numbers(docker, "goes-on")) > 3, timeout=30, what="the counter")
    docker.ok("checkpoint", "create", "--leave-running", "goes-on", "one")
    count = len(numbers(docker, "goes-on"))
    wait_until(lambda: len(numbers(docker, "goes-on")) > count + 3, timeout=30, what="the counter's next numbers")
    found = numbers(docker, "goes-on")
    assert found == list(range(1, len(found) + 1))
