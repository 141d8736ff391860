"""docker run --annotation io.runvm.warm: later containers of an image go on from the first one, once that was ready."""

from __future__ import annotations

import shutil
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from framework.docker import IMAGE
from framework.images import SERVICES
from framework.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.docker import Dockerd
    from framework.runtime import Runtime

pytestmark = pytest.mark.only("runvm", "other runtimes have no warm starts")

SERVER = """
import argparse, asyncio, ctypes, decimal, difflib, email.mime.multipart, http.server, inspect, itertools, json, logging
import multiprocessing, pydoc, sqlite3, ssl, tarfile, unittest, urllib.request, uuid, xml.dom.minidom, zipfile
count = itertools.count(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{next(count)} {open('/etc/hostname').read().strip()}".encode())
server = http.server.ThreadingHTTPServer(("", 80), Handler)
open("/tmp/ready", "w").close()
server.serve_forever()
"""


def warmed(runtime: Runtime) -> list[dict[str, Any]]:
    """What `template list` has of warm containers."""
    return [
        entry for entry in runtime.ok("template", "list", "--format", "json").json() if "warm" in entry["made_from"]
    ]


@pytest.fixture(autouse=True)
def supported(runtime: Runtime, docker: Dockerd) -> Iterator[None]:
    """Skip where something is too old; afterwards what was kept goes."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")
    if "--annotation" not in docker.ok("run", "--help"):
        pytest.skip("Docker is older than 24: its containers can't have annotations")
    yield
    for entry in warmed(runtime):
        shutil.rmtree(entry["directory"])


def answer(docker: Dockerd, name: str) -> tuple[int, str]:
    """What the server says: a number and its host's name."""
    address = docker.ok("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
    data = b""

    def ask() -> bool:
        nonlocal data
        data = b""
        with socket.socket() as client:
            client.settimeout(30)
            if client.connect_ex((address, 80)):
                return False
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while part := client.recv(1000):
                data += part
        return True

    wait_until(ask, timeout=120, what=f"{name}'s server", interval=0.02)
    number, host = data.rpartition(b"\r\n\r\n")[2].decode().split()
    return int(number), host


def test_a_web_application_starts_warm(docker: Dockerd, runtime: Runtime) -> None:
    """Its imports are done once; each container has its own name, address and files. And it is quicker by far."""
    docker.provide("services:warm", SERVICES)

    def run(name: str) -> float:
        began = time.monotonic()
        docker.ok(
            *("run", "--detach", "--annotation", "io.runvm.warm=/tmp/ready", "--name", name),
            *("services:warm", "python3", "-c", SERVER),
        )
        number, host = answer(docker, name)
        took = time.monotonic() - began
        assert number in (1, 2)  # the first one may have answered before its checkpoint was taken
        assert host == docker.inspect(name)["Config"]["Hostname"]
        return took

    cold = run("cold")
    wait_until(lambda: len(warmed(runtime)) == 1, timeout=90, what="the checkpoint", interval=0.3)
    answer(docker, "cold")
    warm = [run(name) for name in ("one", "two")]
    print(f"cold {cold:.2f} s, warm {warm[0]:.2f} s, {warm[1]:.2f} s")
    assert min(warm) < cold / 2
    docker.ok("exec", "one", "sh", "-c", "echo mine >/tmp/mine")
    assert docker.call("exec", "two", "cat", "/tmp/mine").code != 0
    docker.ok("stop", "--time", "1", "two")
    docker.ok("start", "two")
    assert answer(docker, "two")[1] == docker.inspect("two")["Config"]["Hostname"]


def test_a_health_check_is_a_sign(docker: Dockerd, runtime: Runtime) -> None:
    """`healthy`: not before --health-cmd has succeeded; later containers are healthy at their first check."""
    script = "sleep 4; mkdir /tmp/up; while :; do sleep 0.2; done"
    health = ("--health-cmd", "test -d /tmp/up", "--health-interval", "1s", "--health-retries", "100")

    def run(name: str) -> None:
        flags = ("--detach", "--annotation", "io.runvm.warm=healthy", *health, "--name", name)
        docker.ok("run", *flags, IMAGE, "sh", "-c", script)
        wait_until(lambda: status(name) == "healthy", timeout=120, what=f"{name}'s health", interval=0.3)

    def status(name: str) -> str:
        return str(docker.inspect(name)["State"]["Health"]["Status"])

    run("first")
    wait_until(lambda: len(warmed(runtime)) == 1, timeout=120, what="the checkpoint", interval=0.3)
    run("later")
    assert docker.inspect("later")["State"]["Health"]["Log"][0]["ExitCode"] == 0
    assert not [line for line in docker.ok("exec", "later", "ps").splitlines() if line.endswith(" sleep 4")]
    assert len(warmed(runtime)) == 1


def test_a_terminal_of_a_warm_container(docker: Dockerd, runtime: Runtime) -> None:
    """A shell that has got its prompt once goes on at the terminal of each that comes later."""
    flags = ("--annotation", "io.runvm.warm=2s", "--tty", "--interactive", "--detach")
    docker.ok(
        "run", *flags, "--name", "first", IMAGE, "sh", "-c", "X=early; sleep 1; while read line; do eval $line; done"
    )
    wait_until(lambda: len(warmed(runtime)) == 1, timeout=90, what="the checkpoint", interval=0.3)
    docker.ok(
        "run", *flags, "--name", "later", IMAGE, "sh", "-c", "X=early; sleep 1; while read line; do eval $line; done"
    )
    assert docker.ok("exec", "later", "ps").count("sh -c X=early") == 1
