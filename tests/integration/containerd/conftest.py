"""One containerd for all of these tests, called by ctr as a user of the tested runtime."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.containerd import Containerd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Runtime


@pytest.fixture(scope="session")
def containerd(runtime: Runtime, scratch: str) -> Iterator[Containerd]:
    """A running containerd."""
    for name in ("containerd", "ctr", "containerd-shim-runc-v2"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} isn't installed: apt-get install containerd")
    daemon = Containerd(f"{scratch}/containerd")
    daemon.start()
    yield daemon
    daemon.stop()
    process.reap_orphans()


@pytest.fixture(autouse=True)
def nothing_left(containerd: Containerd, host: Host) -> Iterator[None]:
    """Tasks and containers of a test are removed, and the host is as before."""
    host.mark()
    yield
    for name in containerd.ctr("containers", "list", "--quiet").text.split():
        containerd.ctr("tasks", "delete", "--force", name)
        containerd.ctr("containers", "delete", name)
    assert host.leaks(settle=10) == set()
