"""Network namespaces that outlive a virtual machine are left as they were before it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from framework.host import processes_of
from framework.network import NetNamespace, address, veth
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Container

pytestmark = pytest.mark.only("runvm", "there are taps")

PORTS = "20000 29999"
_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"


@pytest.fixture
def namespaces() -> Iterator[list[NetNamespace]]:
    """Two that an engine has made, each with an interface and a range of ports of its own, and where those lead to."""
    made = [NetNamespace(f"rvt{os.getpid()}-{name}") for name in ("one", "two", "far")]
    try:
        for number, each in enumerate(made[:2]):
            veth(each, made[2], name="eth0", far_name=f"far{number}")
            address(each, "eth0", f"10.77.{number}.2/24")
            each.call("sh", "-c", f"echo {PORTS} >{_RANGE}").expect(0)
        yield made[:2]
    finally:
        for each in made:
            each.close()


def ports(namespace: NetNamespace) -> str:
    """The range that its own sockets get."""
    return " ".join(namespace.call("cat", _RANGE).expect(0).text.split())


@pytest.mark.parametrize("killed", ["", "supervisor", "supervisor, slowly", "vmm"])
def test_the_namespaces_of_a_pod_are_as_they_were(box: Box, namespaces: list[NetNamespace], killed: str) -> None:
    """Ports, queueing disciplines and interfaces, in both namespaces, also after the supervisor was killed; and where
    the other container's process still has to notice that, while the first one is deleted."""
    containers: list[Container] = []
    for namespace in namespaces:
        container = box.idle()
        container.bundle.namespace("network", namespace.path)
        if containers:
            container.bundle.namespace("ipc", f"/proc/{containers[0].init_pid}/ns/ipc")
        containers.append(container.launch())
    assert processes_of(containers[0])["vmm"] == processes_of(containers[1])["vmm"]
    for namespace in namespaces:
        assert ports(namespace) != PORTS, "nothing to restore"
    if killed.endswith("slowly"):
        os.kill(containers[1].init_pid, signal.SIGSTOP)
    if killed:
        os.kill(processes_of(containers[0])[killed.partition(",")[0]], signal.SIGKILL)
    for container in containers:
        container.delete("--force")
    for namespace in namespaces:
        assert ports(namespace) == PORTS
        assert "ingress" not in namespace.call("tc", "qdisc", "show").expect(0).text
        assert "rvtap" not in namespace.ip("link", "show")


def test_a_killed_machines_delete_leaves_its_successors_filters(box: Box, namespaces: list[NetNamespace]) -> None:
    """A new container has come into the same namespace before the first one is deleted: its network goes on."""
    namespace = namespaces[0]
    first = box.idle()
    first.bundle.namespace("network", namespace.path)
    first.launch()
    os.kill(processes_of(first)["supervisor"], signal.SIGKILL)
    wait_until(lambda: "rvtap" not in namespace.ip("link", "show"), timeout=10, what="the end of the first VM")
    second = box.idle()
    second.bundle.namespace("network", namespace.path)
    second.launch()
    filters = namespace.call("tc", "filter", "show", "dev", "eth0", "ingress").expect(0).text
    assert "mirred" in filters
    first.delete("--force")
    assert namespace.call("tc", "filter", "show", "dev", "eth0", "ingress").expect(0).text == filters
