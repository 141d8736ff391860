"""TCP throughput and latency between host and container through Docker's bridge, against a bare tap, and runc."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

from bench.floor import MOUNT
from bench.results import Figure, median, ratio
from bench.runner import SECONDS, Bench, Skip
from framework.docker import IMAGE, RUNTIME
from runvm.network import tap

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILY = "network"
_PORT = 5001
_REQUESTS = 500
_TAP = "rvbtap0"
_NETWORK = "10.215.249"


def run(bench: Bench) -> None:
    """All figures of the family."""
    size = (32 << 20) if bench.quick else (128 << 20)
    docker = bench.docker
    addresses: dict[str, str] = {}
    containers = []
    device = tap.create_tap(_TAP)
    try:
        for way, runtime in (("runvm", RUNTIME), ("runc", "runc")):
            containers.append(docker.detached(f"--runtime={runtime}", IMAGE, "perl", "/net.pl", str(_PORT)))
            networks = docker.inspect(containers[-1])["NetworkSettings"]["Networks"]
            addresses[way] = next(iter(networks.values()))["IPAddress"]
        # made for redirection, where the host's stack stays silent
        for words in (f"link set {_TAP} arp on", f"address add {_NETWORK}.1/30 dev {_TAP}"):
            subprocess.run(["ip", *words.split()], check=True, timeout=10)
        vm = bench.floor.start(bench.template, first=MOUNT, tap=device)
        try:
            vm.answer()
            vm.run(f"ip address add {_NETWORK}.2/30 dev eth0; ip link set eth0 up; ip link set lo up")
            vm.run(f"chroot /run/share /usr/bin/perl /net.pl {_PORT} </dev/null >/dev/null 2>&1 &")
            _measure(bench, {"bare tap": f"{_NETWORK}.2", **addresses}, size)
        finally:
            vm.close()
    finally:
        os.close(device)
        if containers:
            docker.call("rm", "--force", *containers)


def _measure(bench: Bench, addresses: dict[str, str], size: int) -> None:
    for address in addresses.values():
        _await_answer(address)
    mib = size >> 20
    kinds: tuple[tuple[str, Callable[[str], float]], ...] = (
        (f"{mib} MiB to the guest", lambda address: _send(address, size)),
        (f"{mib} MiB from the guest", lambda address: _receive(address, size)),
        (f"{_REQUESTS} requests of 64 bytes, one after the other", _requests),
    )
    for name, measure in kinds:
        measures = {way: partial(measure, address) for way, address in addresses.items()}
        samples = bench.side_by_side(measures, 9)
        value = ratio(samples["runvm"], samples["bare tap"])
        bench.add(Figure(FAMILY, f"{name}: runvm / bare tap", value, "x", "median of pairs", 1.1, samples))
        value = median(samples["runvm"]) / median(samples["runc"])
        bench.add(Figure(FAMILY, f"{name}: runvm / runc", value, "x", "of medians"))


def _await_answer(address: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with _connected(address, "hello", timeout=2) as connection:
                if connection.recv(4) == b"done":
                    return
        except OSError as error:
            if time.monotonic() > deadline:
                raise Skip(f"nothing answers at {address}: {error}") from None
        time.sleep(0.2)


def _connected(address: str, what: str, *, timeout: float = SECONDS) -> socket.socket:
    connection = socket.create_connection((address, _PORT), timeout=timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(what.encode() + b"\n")
    return connection


def _send(address: str, size: int) -> float:
    block = bytes(1 << 16)
    with _connected(address, f"sink {size}") as connection:
        begun = time.perf_counter()
        for _ in range(size // len(block)):
            connection.sendall(block)
        if connection.recv(4) != b"done":
            raise Skip(f"{address} didn't take {size} bytes")
        return (time.perf_counter() - begun) * 1000


def _receive(address: str, size: int) -> float:
    with _connected(address, f"source {size}") as connection:
        begun = time.perf_counter()
        left = size
        while data := connection.recv(1 << 18):
            left -= len(data)
        if left > 0:
            raise Skip(f"{address} sent {left} of {size} bytes too few")
        return (time.perf_counter() - begun) * 1000


def _requests(address: str) -> float:
    with _connected(address, "echo") as connection:
        begun = time.perf_counter()
        for _ in range(_REQUESTS):
            connection.sendall(b"x" * 64)
            came = 0
            while came < 64:
                came += len(connection.recv(64)) or _ended(address)
        return (time.perf_counter() - begun) * 1000


def _ended(address: str) -> int:
    raise Skip(f"{address} ended the connection")
