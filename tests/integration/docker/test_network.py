"""Docker's networks: ports, names, several containers, none, and another's."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from framework.dns import NameServer
from framework.docker import IMAGE
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.docker import Dockerd
    from framework.runtime import Runtime

OUTSIDE = {
    "outside.example": ["192.0.2.55", "2001:db8::55"],
    "many.example": [f"198.51.100.{number}" for number in range(1, 101)],
}
SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done")


@pytest.fixture
def names(docker: Dockerd) -> Iterator[NameServer]:
    """A name server on the bridge's address, which is what lies outside."""
    server = NameServer(docker.gateway, OUTSIDE)
    yield server
    server.close()


def test_a_published_port_reaches_the_container(docker: Dockerd) -> None:
    """-p to a chosen and a free port, TCP, from the host by its own address; the container's address works as well."""
    docker.detached(
        *("--name", "web", "--publish", "127.0.0.1:18080:80", "--publish", "127.0.0.1::80", IMAGE, "sh", "-c"),
        "mkdir -p /www && echo hello >/www/index.html && exec httpd -f -p 80 -h /www",
    )
    other = docker.ok("port", "web", "80/tcp").splitlines()
    ports = sorted(int(line.rsplit(":", 1)[1]) for line in other)
    assert 18080 in ports
    assert len(ports) == 2
    own = docker.inspect("web")["NetworkSettings"]["IPAddress"]
    for address in (*(("127.0.0.1", port) for port in ports), (own, 80)):
        deadline = time.monotonic() + 20
        while b"hello" not in fetch(address):
            assert time.monotonic() < deadline, f"no page at {address}"


def fetch(address: tuple[str, int]) -> bytes:
    """A page by HTTP 1.0, b"" while nobody answers."""
    try:
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return answer
    except OSError:
        time.sleep(0.1)
        return b""


def test_the_default_network(docker: Dockerd) -> None:
    """eth0 with the address, MAC and MTU that inspect tells, a default route; gateway and other container in reach."""
    docker.detached("--name", "peer", IMAGE, *SLEEP)
    peer = docker.inspect("peer")["NetworkSettings"]["IPAddress"]
    docker.detached("--name", "near", "--mac-address", "02:42:0a:d5:00:77", IMAGE, *SLEEP)
    settings = docker.inspect("near")["NetworkSettings"]
    shown = docker.ok("exec", "near", "sh", "-c", "ip -o addr show eth0; ip -o link show eth0; ip route")
    assert f"inet {settings['IPAddress']}/24" in shown
    assert "02:42:0a:d5:00:77" in shown
    assert f"default via {docker.gateway} dev eth0" in shown
    docker.ok("exec", "near", "ping", "-c", "1", "-W", "5", docker.gateway)
    docker.ok("exec", "near", "ping", "-c", "1", "-W", "5", peer)


def test_a_user_network_has_names(docker: Dockerd, names: NameServer) -> None:
    """On a user network 127.0.0.11 answers: names, aliases, short ids, outside names."""
    docker.ok("network", "create", "named-net")
    common = ("--network", "named-net", "--dns", docker.gateway)
    docker.detached("--name", "server", "--network-alias", "alias", *common, IMAGE, *SLEEP)
    docker.detached("--name", "client", *common, IMAGE, *SLEEP)
    address = docker.inspect("server")["NetworkSettings"]["Networks"]["named-net"]["IPAddress"]
    assert "nameserver 127.0.0.11" in docker.ok("exec", "client", "cat", "/etc/resolv.conf")
    short = docker.inspect("server")["Id"][:12]
    for name in ("server", "alias", short):
        assert address in docker.ok("exec", "client", "nslookup", name, "127.0.0.11"), name
    assert f"PING server ({address})" in docker.ok("exec", "client", "ping", "-c", "1", "-W", "5", "server")
    docker.ok("exec", "server", "ping", "-c", "1", "-W", "5", "client")
    assert "192.0.2.55" in docker.ok("exec", "client", "nslookup", "outside.example")
    assert (
        "PING outside.example (192.0.2.55)"
        in docker.call("exec", "client", "ping", "-c", "1", "-W", "1", "outside.example").text
    )
    assert docker.call("exec", "client", "nslookup", "no-such-name.example").code != 0
    assert ("outside.example", "udp") in names.asked
    # A new container's name is known at once, a removed one's no longer
    docker.detached("--name", "late", *common, IMAGE, *SLEEP)
    docker.ok("exec", "client", "ping", "-c", "1", "-W", "5", "late")
    docker.ok("rm", "--force", "late")
    assert docker.call("exec", "client", "ping", "-c", "1", "-W", "5", "late").code == 1


def test_outside_names_on_the_default_network(docker: Dockerd, names: NameServer) -> None:
    """--dns is in resolv.conf, and the name server is reached directly."""
    result = docker.run("--dns", docker.gateway, IMAGE, "sh", "-c", "cat /etc/resolv.conf; nslookup outside.example")
    assert f"nameserver {docker.gateway}" in result.expect(0).text
    assert "192.0.2.55" in result.text


def test_network_none_has_loopback_only(docker: Dockerd) -> None:
    """--network none: lo is up, nothing else."""
    result = docker.run(
        "--network", "none", IMAGE, "sh", "-c", "ip -o addr; ping -c 1 127.0.0.1 >/dev/null && echo lo-works"
    )
    assert "lo-works" in result.expect(0).text
    assert "eth0" not in result.text


def test_namespaces_of_another_container(docker: Dockerd, runtime: Runtime) -> None:
    """--network, --pid and --ipc container:x: one network with its ports, each other's processes, one /dev/shm."""
    serve = "httpd -p 127.0.0.1:8000 -h /etc; sleep 1001"
    docker.detached("--name", "first", "--ipc", "shareable", IMAGE, "sh", "-c", serve)
    joined = [word for kind in ("network", "pid", "ipc") for word in (f"--{kind}", "container:first")]
    docker.detached("--name", "second", *joined, IMAGE, *SLEEP)
    assert docker.ok("exec", "second", "hostname") == docker.ok("exec", "first", "hostname")
    assert docker.ok("exec", "second", "ip", "-o", "-4", "addr") == docker.ok("exec", "first", "ip", "-o", "-4", "addr")
    assert "root:" in docker.ok("exec", "second", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/passwd")
    assert "sleep 1001" in docker.ok("exec", "second", "ps", "-o", "args")
    docker.ok("exec", "first", "sh", "-c", "echo shared >/dev/shm/file")
    assert docker.ok("exec", "second", "cat", "/dev/shm/file") == "shared"
    # Its own root and its own end
    docker.ok("exec", "second", "touch", "/only-second")
    assert docker.call("exec", "first", "test", "-e", "/only-second").code == 1
    docker.ok("rm", "--force", "second")
    assert docker.ok("exec", "first", "echo", "alive") == "alive"


def test_connect_and_disconnect_a_running_container(docker: Dockerd) -> None:
    """`docker network connect` gives a running container a second interface; disconnect takes it away."""
    docker.ok("network", "create", "second-net")
    docker.detached("--name", "moving", IMAGE, *SLEEP)
    docker.ok("network", "connect", "second-net", "moving")
    address = docker.inspect("moving")["NetworkSettings"]["Networks"]["second-net"]["IPAddress"]
    wait_until(
        lambda: f"inet {address}/" in docker.ok("exec", "moving", "ip", "-o", "addr"), timeout=15, what="the address"
    )
    docker.ok("network", "disconnect", "second-net", "moving")
    wait_until(
        lambda: address not in docker.ok("exec", "moving", "ip", "-o", "addr"), timeout=15, what="the address's end"
    )
