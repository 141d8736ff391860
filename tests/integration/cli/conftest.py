"""The command line, called as engines call it. After each test the host must be as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host


@pytest.fixture(autouse=True)
def nothing_left(host: Host) -> Iterator[None]:
    """Nothing that a test made outlives it: no process, mount, interface, cgroup, socket or file of the runtime."""
    host.mark()
    yield
    assert host.leaks() == set()
