"""What is killed, filled up or broken here must leave the host as it was, once `delete --force` has run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host


@pytest.fixture(autouse=True)
def nothing_left(host: Host) -> Iterator[None]:
    """No process, mount, interface, cgroup, socket or file of the runtime outlives a fault."""
    host.mark()
    yield
    assert host.leaks(settle=10) == set()
