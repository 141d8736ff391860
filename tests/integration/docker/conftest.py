"""One dockerd for all of these tests; after each, its containers are removed and the host must be as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from framework.docker import Dockerd, missing
from framework.engine import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Runtime


@pytest.fixture(scope="session")
def docker(runtime: Runtime, scratch: str, template: str) -> Iterator[Dockerd]:
    """A running dockerd whose default runtime is the one under test."""
    if name := missing():
        pytest.skip(f"{name} isn't installed: apt-get install docker.io")
    with opened(Dockerd(f"{scratch}/docker", runtime, template)) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def nothing_left(docker: Dockerd, host: Host) -> Iterator[None]:
    """The containers of a test are removed, and with them every process, mount, interface and cgroup they had."""
    before = docker.containers()
    host.mark()
    yield
    if made := docker.containers() - before:
        docker.ok("rm", "--force", "--volumes", *made)
    docker.ok("network", "prune", "--force")
    docker.ok("volume", "prune", "--force")
    # dockerd mounts the host's network namespace there when --network host is first asked for, and leaves it
    left = host.leaks(settle=10)
    assert {entry for entry in left if "/exec/netns/default " not in entry} == set()


@pytest.fixture
def grants_all(runtime: Runtime) -> None:
    """A container can have every capability: always in a VM, else where this host's root has them all."""
    with open("/proc/self/status", encoding="utf-8") as file:
        bounding = next(line.split()[1] for line in file if line.startswith("CapBnd"))
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    if not runtime.is_vm and int(bounding, 16) != (1 << last + 1) - 1:
        pytest.skip("this host's root lacks capabilities, so its containers do")


@pytest.fixture
def read_by_containerd() -> None:
    """containerd reads a container's cgroups only where each hierarchy of version 1 in use is mounted; a mount in
    somebody else's namespace is enough for one to be in use."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        used = {name for line in file for name in line.split(":")[1].split(",") if name}
    with open("/proc/self/mounts", encoding="utf-8") as file:
        mounted = {word for line in file if line.split()[2] == "cgroup" for word in line.split()[3].split(",")}
    if missing := used - mounted:
        pytest.skip(f"containerd can't read cgroups here: {', '.join(sorted(missing))} in use, but not mounted")
