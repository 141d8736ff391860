"""One containerd with CRI for all of these tests; after each, its pods are removed and the host must be as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from framework.cri import Cri, missing
from framework.engine import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.host import Host
    from framework.runtime import Runtime


@pytest.fixture(scope="session")
def cri(runtime: Runtime, scratch: str, template: str) -> Iterator[Cri]:
    """A running containerd with CRI, whose runtime is the tested one."""
    if what := missing():
        pytest.skip(what)
    with opened(Cri(f"{scratch}/cri", runtime, template)) as made:
        made.crictl("rmp", "--force", made.crictl("runp", made.pod_file()).text)  # makes the bridge
        yield made


@pytest.fixture(autouse=True)
def nothing_left(cri: Cri, host: Host) -> Iterator[None]:
    """The pods of a test are removed, and with them every process, mount, namespace, interface and cgroup they had."""
    host.mark()
    yield
    cri.remove_all()
    # another containerd's pods have networks by the same names; ours are known by their leases
    left = {entry for entry in host.leaks(settle=10) if not entry.startswith(("interface veth", "netns cni-"))}
    assert left | cri.leases() == set()
