"""Options of Docker's networks: addresses, names by each resolver, ports, several networks, drivers, packet filters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from framework.dns import NameServer
from framework.docker import IMAGE
from framework.images import SERVICES, SYSTEM
from framework.process import call, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.docker import Dockerd
    from framework.runtime import Runtime

MANY = [f"198.51.100.{number}" for number in range(1, 101)]
SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done")
LOOK_UP = """
import concurrent.futures, json, socket
def ask(name, family=socket.AF_INET):
    try:
        return sorted({found[4][0] for found in socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM)})
    except socket.gaierror as error:
        return error.errno == socket.EAI_NONAME
with concurrent.futures.ThreadPoolExecutor(30) as pool:
    at_once = list(pool.map(ask, ["server", "outside.example"] * 60))
print(json.dumps({
    "server": ask("server"), "alias": ask("alias"), "linked": ask("linked"), "six": ask("outside.example", socket.AF_INET6),
    "many": len(ask("many.example")), "none": ask("no-such-name.example"), "searched": ask("outside"),
    "reverse": socket.gethostbyaddr(ask("server")[0])[0],
    "at once": sorted({tuple(found) for found in at_once}),
}))
"""  # noqa: E501

SERVE = """
import socketserver
class Tcp(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(f"port-{self.server.server_address[1]}\\n".encode())
class Udp(socketserver.BaseRequestHandler):
    def handle(self): self.request[1].sendto(self.request[0], self.client_address)
import threading
for port in (9000, 9001, 9002, 9003):
    threading.Thread(target=socketserver.TCPServer(("", port), Tcp).serve_forever).start()
socketserver.UDPServer(("", 5353), Udp).serve_forever()
"""


@pytest.fixture
def names(docker: Dockerd) -> Iterator[NameServer]:
    """A name server on the bridge's address, which is what lies outside."""
    server = NameServer(docker.gateway, {"outside.example": ["192.0.2.55", "2001:db8::55"], "many.example": MANY})
    yield server
    server.close()


def test_addresses_and_names_as_asked(docker: Dockerd) -> None:
    """--ip, --ip6, --mac-address, --hostname, --domainname, --add-host, --dns…; a network's MTU and IPv6."""
    docker.ok(
        *("network", "create", "--ipv6", "--subnet", "10.212.7.0/24", "--subnet", "fd00:212:7::/64"),
        *("--opt", "com.docker.network.driver.mtu=1400", "six"),
    )
    docker.detached("--name", "peer", "--network", "six", "--ip6", "fd00:212:7::9", IMAGE, *SLEEP)
    script = """
    ip -o address show eth0; ip -o link show eth0; ip route; ip -6 route; cat /etc/hosts /etc/resolv.conf
    hostname; hostname -f; ping -6 -c 1 -W 5 peer; ping -4 -c 1 -W 5 peer
    """
    shown = docker.run(
        *("--network", "six", "--ip", "10.212.7.50", "--ip6", "fd00:212:7::50", "--link-local-ip", "169.254.7.7"),
        *("--mac-address", "02:42:aa:bb:cc:dd"),
        *("--hostname", "named", "--domainname", "dom.example", "--add-host", "extra:192.0.2.9", "--dns", "192.0.2.53"),
        *("--dns-search", "search.example", "--dns-option", "ndots:3", IMAGE, "sh", "-c", script),
    )
    text = shown.expect(0).text
    for wanted in (
        "inet 10.212.7.50/24 ", "inet 169.254.7.7/16 ", "inet6 fd00:212:7::50/64 ", " mtu 1400 ",
        "link/ether 02:42:aa:bb:cc:dd ", "default via 10.212.7.1 dev eth0", "default via fd00:212:7::1 dev eth0",
        "192.0.2.9\textra",
        "10.212.7.50\tnamed.dom.example named", "search search.example", "nameserver 127.0.0.11", "\nnamed\n",
        "\nnamed.dom.example\n", "PING peer (fd00:212:7::9)", "1 packets received", "PING peer (10.212.7.",
    ):  # fmt: skip
        assert wanted in text, f"{wanted!r} in:\n{text}"
    assert "ndots:3" in text
    # the upstream server is Docker's business there, and is in the file on the default network
    assert "nameserver 192.0.2.53" not in text


def test_names_by_the_resolvers_of_glibc_and_busybox(docker: Dockerd, names: NameServer) -> None:
    """A name, alias, link, outside name, long answer, reverse name, by UDP and, with use-vc, TCP; many at once."""
    docker.provide("services:net", SERVICES)
    docker.ok("network", "create", "resolved")
    docker.detached("--name", "server", "--network", "resolved", "--network-alias", "alias", IMAGE, *SLEEP)
    server = docker.inspect("server")["NetworkSettings"]["Networks"]["resolved"]["IPAddress"]
    common = ("--network", "resolved", "--link", "server:linked", "--dns", docker.gateway, "--dns-search", "example")
    docker.detached("--name", "client", *common, "services:net", "sleep", "1000")
    docker.detached("--name", "by-tcp", *common, "--dns-option", "use-vc", "services:net", "sleep", "1000")
    expected = {
        "server": [server], "alias": [server], "linked": [server], "six": ["2001:db8::55"], "many": len(MANY),
        "none": True, "searched": ["192.0.2.55"],
        "reverse": "server.resolved", "at once": sorted([[server], ["192.0.2.55"]]),
    }  # fmt: skip
    for client in ("client", "by-tcp"):
        assert json.loads(docker.ok("exec", client, "python3", "-c", LOOK_UP)) == expected, client
    # nslookup of busybox, which asks by itself, knows neither search lists nor TCP
    script = "nslookup -type=a linked && nslookup -type=aaaa outside.example && ! nslookup no-such-name.example"
    busybox = docker.run(*common[:-2], IMAGE, "sh", "-c", script)
    assert f"Address: {server}" in busybox.expect(0).text
    assert "Address: 2001:db8::55" in busybox.text


def test_links_on_the_default_bridge(docker: Dockerd) -> None:
    """--link: the other's name and alias are in /etc/hosts, its variables in the environment."""
    docker.detached("--name", "linked", "--expose", "80", "--env", "SECRET=told", IMAGE, *SLEEP)
    address = docker.inspect("linked")["NetworkSettings"]["IPAddress"]
    shown = docker.run(
        "--link", "linked:db", IMAGE, "sh", "-c", "cat /etc/hosts; env; ping -c 1 -W 5 db >/dev/null && echo reached"
    )
    text = shown.expect(0).text
    assert f"{address}\tdb " in text
    assert "reached" in text
    assert "DB_ENV_SECRET=told" in text
    assert f"DB_PORT_80_TCP_ADDR={address}" in text


def test_published_udp_ports_and_ranges(docker: Dockerd) -> None:
    """-p of a UDP port and of a range of TCP ports, --publish-all of an exposed one."""
    docker.provide("services:net", SERVICES)
    docker.detached(
        *("--name", "ranges", "--publish", "127.0.0.1:19000-19002:9000-9002", "--publish", "127.0.0.1:15353:5353/udp"),
        *("--publish-all", "--expose", "9003", "services:net", "python3", "-c", SERVE),
    )
    (exposed,) = {line.rsplit(":", 1)[1] for line in docker.ok("port", "ranges", "9003/tcp").splitlines()}
    for outer, inner in ((19000, 9000), (19001, 9001), (19002, 9002), (int(exposed), 9003)):
        answer = wait_until(lambda port=outer: read(port), timeout=30, what=f"port {outer}", interval=0.2)  # type: ignore[misc]
        assert answer == f"port-{inner}\n".encode()
    wait_until(echo, timeout=30, what="the UDP port's answer", interval=0.2)


def read(port: int) -> bytes:
    """What a port on 127.0.0.1 says, b"" while nobody listens behind it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            return connection.recv(100)
    except OSError:
        return b""


def echo() -> bool:
    """Whether four bytes come back from the published UDP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect(("127.0.0.1", 15353))
        try:
            sock.send(b"ping")
            return sock.recv(100) == b"ping"
        except OSError:
            return False


@pytest.mark.slow
def test_a_container_in_eight_networks_and_not_in_nine(docker: Dockerd, runtime: Runtime) -> None:
    """Networks connected before the start are all there, with their names; more than a VM takes are an error."""
    for number in range(9):
        docker.ok("network", "create", f"many{number}")
    docker.detached("--name", "far", "--network", "many7", IMAGE, *SLEEP)
    docker.ok("create", "--name", "hub", "--network", "many0", IMAGE, *SLEEP)
    for number in range(1, 8):
        docker.ok("network", "connect", "--alias", f"hub{number}", f"many{number}", "hub")
    docker.ok("start", "hub")
    networks = docker.inspect("hub")["NetworkSettings"]["Networks"]
    shown = docker.ok("exec", "hub", "sh", "-c", "ip -o -4 address; ip route")
    for network in networks.values():
        assert f"inet {network['IPAddress']}/" in shown
    assert shown.count("default via") == 1
    docker.ok("exec", "hub", "ping", "-c", "1", "-W", "5", "far")
    docker.ok("exec", "far", "ping", "-c", "1", "-W", "5", "hub7")
    docker.ok("stop", "--time", "2", "hub")
    docker.ok("network", "connect", "many8", "hub")
    ninth = docker.call("start", "hub")
    if runtime.is_vm:
        assert b"at most 8 network interfaces" in ninth.expect(1).stderr
    else:
        ninth.expect(0)


@pytest.fixture
def wire() -> Iterator[str]:
    """An interface of the host for macvlan and ipvlan networks, which lie on one."""
    name = f"rvtp{os.getpid()}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", f"{name}x"], check=True, timeout=10)
    for end in (name, f"{name}x"):
        subprocess.run(["ip", "link", "set", end, "up"], check=True, timeout=10)
    yield name
    subprocess.run(["ip", "link", "delete", name], check=True, timeout=10)


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_networks_on_an_interface_of_the_host(docker: Dockerd, wire: str, driver: str) -> None:
    """Two containers of a macvlan or ipvlan network reach each other by name."""
    probe = call(["ip", "link", "add", "rvtprobe", "link", wire, "type", driver])
    if probe.code:
        pytest.skip(f"this kernel has no {driver}: {probe.stderr.decode().strip()}")
    subprocess.run(["ip", "link", "delete", "rvtprobe"], check=True, timeout=10)
    docker.ok("network", "create", "--driver", driver, "--subnet", "10.212.8.0/24", "--opt", f"parent={wire}", "lan")
    docker.detached("--name", "lan1", "--network", "lan", IMAGE, *SLEEP)
    docker.detached("--name", "lan2", "--network", "lan", "--ip", "10.212.8.77", IMAGE, *SLEEP)
    assert "PING lan2 (10.212.8.77)" in docker.ok("exec", "lan1", "ping", "-c", "1", "-W", "5", "lan2")
    docker.ok("exec", "lan2", "ping", "-c", "1", "-W", "5", "lan1")


def test_packet_filters_inside(docker: Dockerd) -> None:
    """With NET_ADMIN iptables, ip6tables, the old iptables and nft set rules that hold; without it none may."""
    docker.provide("system:net", SYSTEM)
    docker.detached("--name", "filtered", "--cap-add", "NET_ADMIN", "system:net", "sleep", "1000")
    script = """
    set -e
    reach() { timeout 20 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null; }
    busybox httpd -p 80 -h /etc
    reach 127.0.0.1 80 && echo open
    iptables -t nat -A OUTPUT -d 192.0.2.1 -p tcp --dport 8080 -j DNAT --to-destination 127.0.0.1:80
    reach 192.0.2.1 8080 && echo translated
    iptables -A INPUT -i lo -p tcp --dport 80 -m conntrack --ctstate NEW -m comment --comment no -j REJECT
    reach 127.0.0.1 80 || echo rejected
    iptables -F INPUT
    ip6tables -A INPUT -p icmpv6 -j DROP
    iptables-legacy -t mangle -A POSTROUTING -p udp -m multiport --dports 1,2 -j MARK --set-mark 1
    nft -f - <<END
    table inet mine {
        set ports { type inet_service; elements = { 80, 81 } }
        chain in { type filter hook input priority 0; iif lo tcp dport @ports counter reject; }
    }
END
    reach 127.0.0.1 80 || echo rejected
    nft list ruleset | grep -c 'tcp dport @ports counter packets [1-9]'
    """
    said = docker.ok("exec", "filtered", "sh", "-c", script).split()
    assert said == ["open", "translated", "rejected", "rejected", "1"]
    assert b"Permission denied" in docker.run("system:net", "iptables", "-L").stderr
