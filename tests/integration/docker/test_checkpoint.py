"""docker checkpoint create, ls, rm and docker start --checkpoint, with a daemon that has experimental features on."""

from __future__ import annotations

import glob
import hashlib
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from framework.docker import IMAGE, Dockerd
from framework.engine import opened
from framework.images import SERVICES
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Runtime

pytestmark = pytest.mark.only("runvm", "runc has CRIU for it, which isn't everywhere")

COUNTER = "exec 3>>/log; n=0; while :; do n=$((n + 1)); echo $n >&3; echo $n; sleep 0.2; done"


@pytest.fixture(scope="module")
def docker(runtime: Runtime, scratch: str, template: str) -> Iterator[Dockerd]:
    """A daemon that knows checkpoints."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")
    options: dict[str, object] = {"experimental": True}
    with opened(Dockerd(f"{scratch}/docker-experimental", runtime, template, options=options)) as daemon:
        yield daemon


def numbers(docker: Dockerd, name: str) -> list[int]:
    """What the counter has logged."""
    return [int(line) for line in docker.ok("logs", name).split()]


def test_a_container_is_checkpointed_and_started_from_there(docker: Dockerd) -> None:
    """It stops with the checkpoint, is listed, starts from it with the next number, and again from a second one."""
    docker.ok("run", "--detach", "--name", "counts", IMAGE, "sh", "-c", COUNTER)
    wait_until(lambda: len(numbers(docker, "counts")) > 3, timeout=30, what="the counter")
    for name in ("one", "two"):
        docker.ok("checkpoint", "create", "counts", name)
        assert name in docker.ok("checkpoint", "ls", "counts")
        assert docker.ok("inspect", "--format", "{{.State.Status}}", "counts") == "exited"
        count = len(numbers(docker, "counts"))
        docker.ok("start", "--checkpoint", name, "counts")
        wait_until(lambda: len(numbers(docker, "counts")) > count + 3, timeout=30, what="the restored counter")  # noqa: B023
    found = numbers(docker, "counts")
    assert found == list(range(1, len(found) + 1))
    assert docker.ok("exec", "counts", "tail", "-n", "1", "/log").isdigit()
    docker.ok("checkpoint", "rm", "counts", "one")
    assert "one" not in docker.ok("checkpoint", "ls", "counts")


def test_a_container_goes_on_after_a_checkpoint(docker: Dockerd) -> None:
    """--leave-running."""
    docker.ok("run", "--detach", "--name", "goes-on", IMAGE, "sh", "-c", COUNTER)
    wait_until(lambda: len(numbers(docker, "goes-on")) > 3, timeout=30, what="the counter")
    docker.ok("checkpoint", "create", "--leave-running", "goes-on", "one")
    count = len(numbers(docker, "goes-on"))
    wait_until(lambda: len(numbers(docker, "goes-on")) > count + 3, timeout=30, what="the counter's next numbers")
    found = numbers(docker, "goes-on")
    assert found == list(range(1, len(found) + 1))


SERVER = """
import http.server, itertools
count = itertools.count(1)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = str(next(count)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 80), Handler).serve_forever()
"""
TRANSACTION = """
import os, time, psycopg
for _ in range(300):
    try:
        connection = psycopg.connect("user=postgres")
        break
    except psycopg.OperationalError:
        time.sleep(0.5)
connection.execute("CREATE TABLE rows (n int PRIMARY KEY)")
connection.commit()
connection.execute("INSERT INTO rows SELECT generate_series(1, 1000)")
print("in the middle", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.2)
connection.execute("INSERT INTO rows VALUES (1001)")
connection.commit()
print("rows:", connection.execute("SELECT count(*) FROM rows").fetchone()[0], flush=True)
"""


@pytest.fixture(scope="module")
def services(docker: Dockerd) -> str:
    """An image with Python, Redis and PostgreSQL."""
    docker.provide("services:checkpoint", SERVICES, "ENV POSTGRES_PASSWORD=secret", "WORKDIR /var/lib/postgresql")
    return "services:checkpoint"


def address(docker: Dockerd, name: str) -> str:
    """Its address on Docker's bridge."""
    return docker.ok("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)


def connected(docker: Dockerd, name: str, port: int) -> socket.socket:
    """A connection to a server that is about to come up."""
    client = socket.socket()
    client.settimeout(60)

    def connect() -> bool:
        nonlocal client
        if client.connect_ex((address(docker, name), port)) == 0:
            return True
        client.close()
        client = socket.socket()
        client.settimeout(60)
        return False

    wait_until(connect, timeout=120, what=f"the server in {name}", interval=0.3)
    return client


def round_trip(docker: Dockerd, name: str, checkpoint: str) -> None:
    """Out of the container and back."""
    docker.ok("checkpoint", "create", name, checkpoint)
    wait_until(lambda: not docker.inspect(name)["State"]["Running"], timeout=30, what=f"the end of {name}")
    docker.ok("start", "--checkpoint", checkpoint, name)


def counted(client: socket.socket) -> int:
    """The number that the server answers a request with."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
    data = b""
    while not data.rpartition(b"\r\n\r\n")[2] or b"\r\n\r\n" not in data:
        part = client.recv(1000)
        assert part, data
        data += part
    return int(data.rpartition(b"\r\n\r\n")[2])


def test_a_python_server_keeps_its_counter_and_its_client(docker: Dockerd, services: str) -> None:
    """What it has in memory is there; the connection, at the same address, as well."""
    docker.ok("run", "--detach", "--name", "web", services, "python3", "-c", SERVER)
    with connected(docker, "web", 80) as client:
        assert counted(client) == 1
        round_trip(docker, "web", "one")
        assert counted(client) == 2
    with connected(docker, "web", 80) as client:
        assert counted(client) == 3


def test_redis_keeps_data_and_client(docker: Dockerd, services: str) -> None:
    """Three times: a client that stays connected sees all that it has set."""
    docker.ok("run", "--detach", "--name", "redis", services, "redis-server", "--protected-mode", "no", "--save", "")
    with connected(docker, "redis", 6379) as client:
        replies = client.makefile("rb")
        for number in range(1, 4):
            client.sendall(b"SET key%d %s\r\n" % (number, b"v" * 5000))
            assert replies.readline() == b"+OK\r\n"
            round_trip(docker, "redis", f"round{number}")
            client.sendall(b"DBSIZE\r\nINCR counter\r\nSTRLEN key1\r\n")
            answer = [replies.readline() for _ in range(3)]
            assert answer == [b":%d\r\n" % (number if number == 1 else number + 1), b":%d\r\n" % number, b":5000\r\n"]


def test_postgresql_goes_on_in_the_middle_of_a_transaction(docker: Dockerd, services: str) -> None:
    """A client in the container has inserted, and commits after the restore."""
    script = (
        'postgres-entrypoint postgres & exec setpriv --reuid=postgres --regid=postgres --clear-groups python3 -c "$0"'
    )
    docker.ok("run", "--detach", "--name", "postgres", services, "sh", "-c", script, TRANSACTION)
    docker.wait_log("postgres", "in the middle", timeout=300)
    round_trip(docker, "postgres", "middle")
    docker.ok("exec", "postgres", "touch", "/tmp/go")
    docker.wait_log("postgres", "rows: 1001", timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_rounds_of_redis(docker: Dockerd, services: str) -> None:
    """From checkpoint to checkpoint, a client stays connected: every value has its key's checksum."""
    docker.ok("run", "--detach", "--name", "rounds", services, "redis-server", "--protected-mode", "no", "--save", "")
    with connected(docker, "rounds", 6379) as client:
        replies = client.makefile("rb")

        def ask(*words: bytes) -> bytes:
            parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
            client.sendall(b"*%d\r\n%s" % (len(words), parts))
            line = replies.readline()
            return replies.read(int(line[1:]) + 2)[:-2] if line[:1] == b"$" else line.strip()

        for number in range(2000):
            assert ask(b"SET", b"key%d" % number, hashlib.sha256(b"%d" % number).hexdigest().encode() * 20) == b"+OK"
        for number in range(100):
            docker.ok("checkpoint", "create", "rounds", "one")
            wait_until(lambda: not docker.inspect("rounds")["State"]["Running"], timeout=30, what="its end")
            docker.ok("start", "--checkpoint", "one", "rounds")
            docker.ok("checkpoint", "rm", "rounds", "one")
            for left in glob.glob("/tmp/ctrd-checkpoint*"):  # containerd leaves what it has unpacked for a start
                shutil.rmtree(left)
            assert ask(b"INCR", b"round") == b":%d" % (number + 1)
            for key in (0, number, 1999 - number):
                assert ask(b"GET", b"key%d" % key) == hashlib.sha256(b"%d" % key).hexdigest().encode() * 20
        assert ask(b"DBSIZE") == b":2001"
        for number in range(2000):
            assert ask(b"GET", b"key%d" % number) == hashlib.sha256(b"%d" % number).hexdigest().encode() * 20
