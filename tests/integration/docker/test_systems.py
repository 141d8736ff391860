"""Whole systems in a container: a dockerd with containers of its own, systemd as init; and many containers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from framework.docker import IMAGE
from framework.images import SYSTEM
from framework.process import wait_until

if TYPE_CHECKING:
    from framework.docker import Dockerd
    from framework.runtime import Runtime

SLOW = 550.0
VERY_SLOW = 1500.0
AT_ONCE = 20
# Of cgroup v2's groups only leaves may have processes: those there are leave the root, as in the public docker:dind.
# containerd first: dockerd gives one that it starts itself 15 s, which an emulated guest may need
DOCKER_INSIDE = """
mkdir /sys/fs/cgroup/init
xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/init/cgroup.procs || true
sed -e 's/ / +/g' -e 's/^/+/' </sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
if [ -d /disk ]; then
    truncate -s 2G /disk/image
    mkfs.ext4 -q /disk/image
    mkdir -p /var/lib/docker
    mount -o loop /disk/image /var/lib/docker
fi
containerd >/tmp/containerd.log 2>&1 &
until [ -S /run/containerd/containerd.sock ]; do sleep 0.5; done
dockerd --containerd /run/containerd/containerd.sock >/tmp/dockerd.log 2>&1 &
until [ -S /run/docker.sock ]; do sleep 0.5; done
mkdir -p /context/bin
cp /bin/busybox /context/bin
cat >/context/Dockerfile <<END
FROM scratch
COPY bin /bin
RUN ["/bin/busybox", "sh", "-c", "echo built >/made"]
END
DOCKER_BUILDKIT=0 docker build --quiet --tag inner /context >/dev/null
docker info --format '{{.Driver}}'
docker run --rm --memory 64m inner /bin/busybox sh -c '
    busybox cat /made
    busybox cat /sys/fs/cgroup/memory.max
    busybox ping -c 1 -W 5 172.17.0.1 | busybox grep received'
"""


@pytest.fixture
def system(docker: Dockerd) -> str:
    """An image with systemd and dockerd."""
    docker.provide("system:test", SYSTEM)
    return "system:test"


@pytest.mark.slow
@pytest.mark.timeout(VERY_SLOW + 100)
@pytest.mark.parametrize("storage", [("--volume", "disk:/disk"), ("--tmpfs", "/var/lib/docker:exec")])
def test_a_dockerd_inside_builds_and_runs(
    docker: Dockerd, system: str, runtime: Runtime, storage: tuple[str, str]
) -> None:
    """--privileged: containers in the container, its storage overlay2 on a disk image on a volume, or on a tmpfs."""
    if not runtime.is_vm:
        pytest.skip("it would change the host's own iptables and cgroups")
    argv = ("--privileged", *storage, "--tmpfs", "/run:exec", system, "sh", "-euc", DOCKER_INSIDE)
    result = docker.call("run", "--rm", *argv, timeout=VERY_SLOW)
    driver, built, limit, received = result.expect(0).text.splitlines()
    assert driver == "overlay2"
    assert built == "built"
    assert limit == str(64 << 20)
    assert received.startswith("1 packets transmitted, 1 ")


@pytest.mark.slow
def test_systemd_as_a_containers_init(docker: Dockerd, system: str) -> None:
    """It comes up with no unit failed, runs a service, and `docker stop` shuts it down by its own signal."""
    options = ("--privileged", "--tmpfs", "/run", "--tmpfs", "/tmp", "--env", "container=docker")
    stop = ("--stop-signal", "SIGRTMIN+3", "--stop-timeout", "120")
    docker.detached("--name", "systemd", *options, *stop, system, "/lib/systemd/systemd")
    up = ("exec", "systemd", "systemctl", "is-system-running", "--wait")
    states = ("running", "degraded")
    wait_until(lambda: docker.call(*up, timeout=SLOW).text in states, timeout=SLOW, what="systemd", interval=1)
    assert docker.ok("exec", "systemd", "systemctl", "list-units", "--failed", "--no-legend") == ""
    said = docker.ok("exec", "systemd", "systemd-run", "--quiet", "--pipe", "--wait", "cat", "/proc/self/cgroup")
    assert "/system.slice/run-" in said
    docker.ok("stop", "systemd", timeout=SLOW)
    assert docker.inspect("systemd")["State"]["ExitCode"] in (0, 130)


def test_twenty_containers_at_once(docker: Dockerd, runtime: Runtime) -> None:
    """Started at the same moment each runs, answers, and goes; that they were slow is not held against the template."""
    before = templates(runtime)
    clients = [
        docker.start_client("run", "--rm", "--hostname", f"h{number}", IMAGE, "hostname") for number in range(AT_ONCE)
    ]
    names = [client.wait(SLOW).expect(0).text for client in clients]
    assert names == [f"h{number}" for number in range(AT_ONCE)]
    assert templates(runtime) == before


def templates(runtime: Runtime) -> list[str]:
    """What virtual machines start from."""
    return runtime.ok("template", "list", "--quiet").text.split() if runtime.is_vm else []
