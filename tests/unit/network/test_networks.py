"""The supervisor's side of a network: which NICs a namespace's interfaces get, and what the guest is told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runvm.errors import RunvmError, VmmError
from runvm.linux import process
from runvm.linux.loop import Loop
from runvm.network.networks import HostNetworks
from runvm.protocol.gate import Gate
from runvm.protocol.interfaces import Network, from_json
from runvm.protocol.messages import Done, Failed, SetNetwork
from unit.network.namespaces import Namespace, veth

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]

NICS = 3


class Vm:
    """What a VM is to its networks: it takes NICs, and its agent says that all is well. *told* is what it heard."""

    def __init__(self, directory: str, box: Namespace) -> None:
        self.loop = Loop()
        self.gate = Gate(self.loop)
        self.told: list[Network] = []
        self.taps: list[int] = []
        self.networks = HostNetworks(directory)
        self.taps.append(self.networks.first_tap(box.fd))
        self.networks.attach(self.loop, self, self, lambda: 1)
        # stands for the container's process on the host
        self.shim = box.run(lambda: subprocess.Popen(["sleep", "600"]))
        shim = process.identity(self.shim.pid)
        assert shim is not None
        self.told.append(from_json(self.networks.join("c1", shim)[1]))

    def plug_nic(self, index: int, tap: int, mac: str, answered: Callable[[RunvmError | None], None]) -> None:
        if index >= NICS:
            raise VmmError(f"a virtual machine has at most {NICS} network interfaces")
        self.taps.append(os.dup(tap))
        answered(None)

    def ask(self, message: Any, answered: Callable[[Done | Failed], None]) -> None:
        if isinstance(message, SetNetwork):
            self.told.append(from_json(message.interfaces))
        answered(Done({}))

    def send(self, kind: int, channel: int, payload: bytes) -> None:
        pass

    def names(self) -> list[str]:
        """Waits until the host's changes have been told; the interfaces that the guest has."""
        self.loop.call_later(0.15, self.loop.stop)
        self.loop.run()
        return sorted(interface.name for interface in self.told[-1].interfaces)

    def close(self) -> None:
        self.networks.close()
        self.shim.kill()
        self.shim.wait()
        for tap in self.taps:
            os.close(tap)


@pytest.fixture
def vm(tmp_path: Path, box: Namespace) -> Iterator[Vm]:
    made = Vm(str(tmp_path), box)
    yield made
    made.close()


def test_an_interface_too_many_stops_no_other_change(
    vm: Vm, box: Namespace, outside: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out with its routes, others come and go, and it gets the first NIC that is free."""
    for number in range(1, NICS + 1):
        veth(outside, f"out{number}", box, f"eth{number}")
        outside.ip(f"link set out{number} up")
        box.ip(f"addr add 172.2{number}.0.2/16 dev eth{number}", f"link set eth{number} up")
        box.ip(f"route add 10.{number}.0.0/16 via 172.2{number}.0.1")
    assert vm.names() == ["eth0", "eth1", "eth2"]
    assert "10.3.0.0/16" not in {route.destination for route in vm.told[-1].routes}
    assert box.call("tc", "filter", "show", "dev", "eth3", "ingress").stdout == ""
    box.ip("addr add 172.17.0.3/16 dev eth0")
    vm.names()
    assert "172.17.0.3" in {address.address for address in vm.told[-1].interfaces[0].addresses}
    box.ip("link delete eth1")
    assert vm.names() == ["eth0", "eth2", "eth3"]
    assert "10.3.0.0/16" in {route.destination for route in vm.told[-1].routes}
    assert len({interface.nic for interface in vm.told[-1].interfaces}) == 3


def test_filters_that_somebody_has_taken_away_come_back(vm: Vm, box: Namespace) -> None:
    """With the next change of the network, whatever that is."""
    box.call("tc", "qdisc", "del", "dev", "eth0", "ingress")
    box.ip("addr add 172.17.0.3/16 dev eth0")
    vm.names()
    assert "mirred" in box.call("tc", "filter", "show", "dev", "eth0", "ingress").stdout


def test_a_great_mtu_is_what_a_tap_takes(vm: Vm, box: Namespace) -> None:
    box.ip("link set eth0 mtu 65535")
    vm.names()
    assert vm.told[-1].interfaces[0].mtu == 65521


def test_the_range_of_ports_is_the_namespaces_own(tmp_path: Path, box: Namespace) -> None:
    """Not that which runvm gives it for the resolver's sake."""
    box.call("sysctl", "-w", "net.ipv4.ip_local_port_range=20000 29999")
    vm = Vm(str(tmp_path), box)
    assert ("ipv4/ip_local_port_range", "20000 29999") in vm.told[0].settings
    vm.close()
    assert box.call("sysctl", "-n", "net.ipv4.ip_local_port_range").stdout.split() == ["20000", "29999"]
