"""The network of a container is that of its namespace: interfaces, addresses, routes, and real traffic both ways."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from framework import host as books
from framework import rootfs
from framework.network import NetNamespace, address, veth
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Container, Runtime

MTU = 1400
MAC = "02:42:0a:4d:00:02"


class Net(NamedTuple):
    """A running container in a namespace with two interfaces, and the far end of them."""

    container: Container
    near: NetNamespace
    far: NetNamespace


@pytest.fixture(scope="module")
def net(module_box: Box) -> Iterator[Net]:
    """A namespace filled before `create`, as CNI and Podman do it, handed over by path."""
    near, far = NetNamespace(f"rvt{os.getpid()}-near"), NetNamespace(f"rvt{os.getpid()}-far")
    try:
        veth(near, far, name="eth0", far_name="far0", mac=MAC, mtu=MTU)
        veth(near, far, name="net1", far_name="far1")
        address(near, "eth0", "10.77.0.2/24", "10.77.0.22/24", "fd77::2/64")
        address(near, "net1", "10.78.0.2/30")
        address(far, "far0", "10.77.0.1/24", "fd77::1/64")
        address(far, "far1", "10.78.0.1/30")
        near.ip("route", "add", "default", "via", "10.77.0.1")
        near.ip("route", "add", "192.0.2.0/24", "via", "10.78.0.1", "src", "10.78.0.2", "metric", "7")
        near.ip("-6", "route", "add", "default", "via", "fd77::1")
        near.ip("-6", "route", "add", "2001:db8::/32", "via", "fd77::1", "dev", "eth0")
        near.ip("neigh", "add", "10.77.0.9", "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent")
        far.ip("address", "add", "192.0.2.1/32", "dev", "lo")
        far.ip("address", "add", "2001:db8::1/128", "dev", "lo", "nodad")
        container = module_box.idle()
        container.bundle.namespace("network", near.path)
        rootfs.install_perl(container.bundle.rootfs)
        container.launch()
        yield Net(container, near, far)
        container.close()
    finally:
        near.close()
        far.close()


def test_interfaces_have_name_mac_mtu_and_addresses_of_the_namespace(net: Net) -> None:
    """`ip link` and `ip address` in the container tell what the namespace held: all interfaces, IPv4 and IPv6."""
    links = net.container.sh("ip -o link")
    eth0 = next(line for line in links.splitlines() if " eth0" in line)
    assert f"mtu {MTU}" in eth0
    assert MAC in eth0
    assert "UP" in eth0
    net1 = next(line for line in links.splitlines() if " net1" in line)
    assert "mtu 1500" in net1
    addresses = net.container.sh("ip -o addr")
    for interface, wanted in (
        ("eth0", "10.77.0.2/24"),
        ("eth0", "10.77.0.22/24"),
        ("eth0", "fd77::2/64"),
        ("net1", "10.78.0.2/30"),
        ("lo", "127.0.0.1/8"),
        ("lo", "::1/128"),
    ):
        pattern = rf"^\d+: {interface}\b.*\binet6? {re.escape(wanted)} "
        assert re.search(pattern, addresses, re.MULTILINE), f"{wanted} on {interface} in\n{addresses}"
    names = {line.split(":")[1].strip().split("@")[0] for line in links.splitlines()}
    assert {name for name in names if not name.startswith(("sit", "tunl", "gre", "ip6", "ip_"))} == {
        "lo",
        "eth0",
        "net1",
    }


def test_routes_and_neighbours_are_those_of_the_namespace(net: Net) -> None:
    """Default and other routes of both families with gateway, source and metric, and permanent neighbours."""
    routes = [line.split() for line in net.container.sh("ip route").splitlines()]
    assert ["default", "via", "10.77.0.1", "dev", "eth0"] in routes
    other = next(route for route in routes if route[0] == "192.0.2.0/24")
    assert other[1:5] == ["via", "10.78.0.1", "dev", "net1"]
    assert other[other.index("src") + 1] == "10.78.0.2"
    assert other[other.index("metric") + 1] == "7"
    routes6 = [line.split() for line in net.container.sh("ip -6 route").splitlines()]
    assert any(route[:5] == ["default", "via", "fd77::1", "dev", "eth0"] for route in routes6)
    assert any(route[:5] == ["2001:db8::/32", "via", "fd77::1", "dev", "eth0"] for route in routes6)
    neighbours = net.container.sh("ip neigh")
    assert re.search(r"10\.77\.0\.9 dev eth0 lladdr 02:00:00:00:00:99.* PERMANENT", neighbours), neighbours


def test_ping_both_ways_with_full_packets(net: Net) -> None:
    """IPv4 and IPv6, by either interface and by routes, with packets as large as the MTU that mayn't be fragmented."""
    for target in ("10.77.0.1", "10.78.0.1", "192.0.2.1"):
        net.container.exec("ping", "-c", "2", "-W", "5", "-s", str(MTU - 28), target).expect(0)
    for target in ("fd77::1", "2001:db8::1"):
        net.container.exec("ping6", "-c", "2", "-W", "5", "-s", str(MTU - 48), target).expect(0)
    for target in ("10.77.0.2", "10.77.0.22", "10.78.0.2"):
        net.far.call("busybox", "ping", "-c", "2", "-W", "5", "-s", str(MTU - 28), target).expect(0)
    net.far.call("busybox", "ping6", "-c", "2", "-W", "5", "fd77::2").expect(0)


@pytest.mark.parametrize(("family", "near", "far"), [(4, "10.77.0.2", "10.77.0.1"), (6, "fd77::2", "fd77::1")])
def test_tcp_both_ways(net: Net, family: int, near: str, far: str) -> None:
    """Connections from and to the container, megabytes each, with their ends; a closed port refuses."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    data = os.urandom(4 << 20)
    digest = hashlib.sha256(data).hexdigest()
    with net.far.socket(kind, socket.SOCK_STREAM) as listener:
        listener.bind((far, 7001))
        listener.listen()
        listener.settimeout(30)
        command = net.container.runtime.start(
            "exec", net.container.id, "sh", "-c", f"nc {far} 7001 </dev/null | sha256sum"
        )
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            connection.sendall(data)
        assert command.wait(60).expect(0).text.split()[0] == digest

    server = net.container.runtime.start("exec", net.container.id, "sh", "-c", "nc -l -p 7002 </dev/null | sha256sum")

    def connect() -> socket.socket | None:
        attempt = net.far.socket(kind, socket.SOCK_STREAM)
        attempt.settimeout(10)
        try:
            attempt.connect((near, 7002))
            return attempt
        except ConnectionRefusedError:
            attempt.close()
            return None

    accepted = wait_until(connect, timeout=20, what="the container's listener")
    assert accepted is not None
    with accepted:
        accepted.settimeout(60)
        accepted.sendall(data)
    assert server.wait(60).expect(0).text.split()[0] == digest
    assert net.container.exec("nc", "-w", "5", far, "7999").code == 1


def test_udp_both_ways(net: Net) -> None:
    """A datagram and its answer, asked from either side, small and of a kilobyte."""
    server = (
        "use Socket; socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in(7003, INADDR_ANY)); $|=1;"
        "print qq(ready\\n);"
        "for (1..2) { $from = recv(S, $data, 65536, 0); send(S, scalar reverse($data), 0, $from); }"
    )
    command = net.container.runtime.start("exec", net.container.id, "perl", "-e", server)
    assert command.popen.stdout is not None
    assert command.popen.stdout.read(6) == b"ready\n"
    with net.far.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(10)
        for data in (b"small", os.urandom(1024)):
            asker.sendto(data, ("10.77.0.2", 7003))
            assert asker.recvfrom(65536) == (data[::-1], ("10.77.0.2", 7003))
    command.wait(20).expect(0)

    client = (
        "use Socket; socket(S, PF_INET, SOCK_DGRAM, 0);"
        "send(S, q(question), 0, sockaddr_in(7004, inet_aton(q(10.78.0.1))));"
        "alarm 10; recv(S, $data, 65536, 0); print $data"
    )
    with net.far.socket(socket.AF_INET, socket.SOCK_DGRAM) as answerer:
        answerer.settimeout(20)
        answerer.bind(("10.78.0.1", 7004))
        command = net.container.runtime.start("exec", net.container.id, "perl", "-e", client)
        data, sender = answerer.recvfrom(65536)
        assert (data, sender[0]) == (b"question", "10.78.0.2")
        answerer.sendto(b"answer", sender)
        assert command.wait(20).expect(0).stdout == b"answer"


def test_the_pid_is_in_the_namespace_that_was_handed_over(net: Net) -> None:
    """/proc/PID/ns/net of the container's pid is the file at the path: engines enter it and join it by that path."""
    info = os.stat(net.near.path)
    assert books.namespace(net.container.init_pid, "net") == f"net:[{info.st_ino}]"


def test_settings_a_small_mtu_a_bridge_and_swapped_names(box: Box) -> None:
    """What plugins set in a namespace holds, an interface may be too small for IPv6 or a bridge, and two that swap
    their names while the container runs do so there, and go on."""
    near, far = NetNamespace(f"rvt{os.getpid()}-n3"), NetNamespace(f"rvt{os.getpid()}-f3")
    settings = {"core/somaxconn": "777", "ipv4/tcp_keepalive_time": "120", "ipv4/ip_unprivileged_port_start": "80"}
    read = f"cd /proc/sys/net; cat {' '.join(settings)} ipv4/ip_local_port_range"
    try:
        veth(near, far, name="eth0", far_name="far0", mtu=1200)
        veth(near, far, name="part", far_name="far1")
        near.ip("link", "add", "br0", "type", "bridge")
        near.ip("link", "set", "part", "master", "br0")
        near.ip("link", "set", "br0", "up")
        address(near, "eth0", "10.81.0.2/24")
        address(near, "br0", "10.82.0.2/24", "fd82::2/64", "fd82::3/64")
        near.ip("address", "add", "fd82::4/64", "dev", "br0", "nodad", "preferred_lft", "0")
        address(far, "far0", "10.81.0.1/24")
        address(far, "far1", "10.82.0.1/24", "fd82::1/64")
        ranges = {"ipv4/ip_local_port_range": "20000 29999"}
        for name, value in (settings | ranges).items():
            near.call("sh", "-c", f"echo {value} >/proc/sys/net/{name}").expect(0)
        container = box.idle()
        container.bundle.namespace("network", near.path)
        container.launch()
        assert container.sh(read).split() == [*settings.values(), "20000", "29999"]
        assert "mtu 1200" in container.sh("ip link show eth0")
        shown = re.findall(r"inet6 (fd82::\S+)", container.sh("ip -6 addr show dev br0"))
        assert shown == re.findall(r"inet6 (fd82::\S+)", near.ip("-6", "addr", "show", "dev", "br0"))
        for target in ("10.81.0.1", "10.82.0.1", "fd82::1"):
            container.exec("ping6" if ":" in target else "ping", "-c", "1", "-W", "5", target).expect(0)
        for before, after in (("eth0", "x"), ("br0", "eth0"), ("x", "br0")):
            near.ip("link", "set", before, "down")
            near.ip("link", "set", before, "name", after)
            near.ip("link", "set", after, "up")
        wait_until(lambda: "mtu 1200" in container.sh("ip link show br0"), timeout=20, what="the swapped names")
        for target in ("10.81.0.1", "10.82.0.1"):
            container.exec("ping", "-c", "2", "-W", "5", target).expect(0)
    finally:
        near.close()
        far.close()


def test_the_namespace_is_as_before_when_the_container_is_gone(box: Box) -> None:
    """After delete the interface has its addresses, routes and MAC again and nothing more (no tap, no qdisc)."""
    near, far = NetNamespace(f"rvt{os.getpid()}-n2"), NetNamespace(f"rvt{os.getpid()}-f2")
    try:
        veth(near, far, name="eth0", far_name="far0", mac=MAC)
        address(near, "eth0", "10.79.0.2/24")
        address(far, "far0", "10.79.0.1/24")
        looks = (("-o", "link"), ("-o", "address"), ("route",))

        def look() -> list[str]:
            shown = [re.sub(r"tentative ?|state \w+|qdisc \w+|qlen \d+|<.*?>", "", near.ip(*args)) for args in looks]
            return [
                *shown,
                near.call("tc", "qdisc", "show").text,
                near.call("tc", "filter", "show", "dev", "eth0").text,
            ]

        before = look()
        container = box("ping", "-c", "1", "-W", "5", "10.79.0.1")
        container.bundle.namespace("network", near.path)
        container.run().expect(0)
        wait_until(lambda: look() == before, timeout=10, what=f"{before}, not {look()}")
        far.call("busybox", "ping", "-c", "1", "-W", "1", "10.79.0.2").expect(0)
    finally:
        near.close()
        far.close()


def test_a_path_that_is_no_namespace_is_refused(box: Box, runtime: Runtime) -> None:
    """A missing path or an ordinary file as network namespace: create fails (naming it), and nothing is left."""
    for path in ("/run/netns/no-such-namespace", "/etc/passwd"):
        container = box("true")
        container.bundle.namespace("network", path)
        result = container.try_create()
        assert result.code == 1
        assert path in result.error or (runtime.name == "runc" and path == "/etc/passwd")
        assert container.id not in runtime.ids()


@pytest.mark.only("runvm", "a virtual machine can't be in the host's network")
def test_the_hosts_network_is_refused(box: Box, runtime: Runtime) -> None:
    """No network namespace, or the host's by path, as `docker run --network host` sends it: one clear error at once."""
    for change in ("absent", "path"):
        container = box("true")
        if change == "absent":
            container.bundle.without_namespace("network")
        else:
            container.bundle.namespace("network", f"/proc/{os.getpid()}/ns/net")
        result = container.try_create()
        assert result.code == 1
        assert "host" in result.error
        assert "network" in result.error
        assert container.id not in runtime.ids()


@pytest.mark.only("runvm", "the host's network is the host's")
def test_the_hosts_network_can_be_the_virtual_machines(box: Box, runtime: Runtime) -> None:
    """With host_network = "vm" a container that asks for the host's has its VM's: loopback works, there is no other."""
    container = box("sh", "-c", "ip -o link; httpd -p 127.0.0.1:80 -h /etc; wget -q -O - http://127.0.0.1/hostname")
    container.bundle.without_namespace("network")
    container.bundle.save()
    config = f"{runtime.scratch}/host-network.toml"
    with open(runtime.config_file, encoding="utf-8") as file:
        text = file.read()
    with open(config, "w", encoding="utf-8") as file:
        file.write(f'{text}host_network = "vm"\n')
    environment = dict(os.environ) | {"RUNVM_CONFIG": config}
    result = runtime.call("run", "--bundle", container.bundle.path, container.id, env=environment)
    link, page = result.expect(0).text.splitlines()
    assert " lo: <LOOPBACK,UP" in link
    assert page == "rootfs"
