"""What runs where KVM works: on a host that is emulated itself (framework.kvm_host), so that deadlines are scaled; with
RUNVM_TEST_KVM=here on this host, if its own KVM works. After each test the host must be as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from framework.docker import Dockerd
from framework.engine import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Runtime

pytest.register_assert_rewrite("faults", "integration")


@pytest.fixture(autouse=True)
def nothing_left(host: Host) -> Iterator[None]:
    """No process, mount, interface, cgroup, socket or file of the runtime outlives a test."""
    host.mark()
    yield
    assert host.leaks(settle=10) == set()


@pytest.fixture
def docker(runtime: Runtime, scratch: str, template: str) -> Iterator[Dockerd]:
    """A running dockerd whose default runtime is the one under test."""
    with opened(Dockerd(f"{scratch}/docker", runtime, template)) as daemon:
        yield daemon
