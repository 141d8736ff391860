"""One Podman for all of these tests; after each, its pods and containers are removed and the host must be as it was."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from framework.engine import opened
from framework.podman import Podman, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Runtime

# Podman removes a pod's cgroup from the hierarchies that it knows, and leaves it in these two of cgroup v1
PODS_CGROUP = re.compile(r"^cgroup /sys/fs/cgroup/(systemd|unified)/.*/podman/[0-9a-f]{64}$")


@pytest.fixture(scope="session")
def podman(runtime: Runtime, scratch: str, template: str) -> Iterator[Podman]:
    """A Podman that calls the runtime under test."""
    if name := missing():
        pytest.skip(f"{name} isn't installed: apt-get install podman")
    with opened(Podman(f"{scratch}/podman", runtime, template)) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(podman: Podman, host: Host) -> Iterator[None]:
    """The containers of a test are removed, and with them every process, mount, namespace and cgroup they had."""
    host.mark()
    yield
    podman.remove_all()
    podman.ok("network", "prune", "--force")
    left = host.leaks(settle=10)
    assert {entry for entry in left if not PODS_CGROUP.search(entry)} == set()
