"""Much data through a container's stdout and stdin, against a bare virtio port that leads into a guest's shell.

The rate doesn't depend on the amount, so it is less than a gigabyte where that would take minutes: QEMU and Linux hand
a virtio port's input on by 4 KiB, which under emulation gives 10 to 25 MiB/s.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

from bench.floor import MOUNT
from bench.results import Figure, ratio
from bench.runner import SECONDS, Bench, Skip

if TYPE_CHECKING:
    from bench.floor import FloorVm

FAMILY = "streams"
_BLOCK = 64 << 10


def run(bench: Bench) -> None:
    """Both figures."""
    cid = bench.launch(bench.runvm, bench.bundle("sleep", "1000"))
    vm = bench.floor.start(bench.template, first=MOUNT)
    try:
        vm.answer()
        for name, stream, bare, ours, mib in (
            ("out of", "stdout", _bare_out, _out, 256),
            ("into", "stdin", _bare_in, _in, 64),
        ):
            size = (mib // 8 if bench.quick else mib) << 20
            measures = {"bare port": partial(bare, vm, size), "runvm": partial(ours, bench, cid, size)}
            samples = bench.side_by_side(measures, 3)
            value = ratio(samples["runvm"], samples["bare port"])
            what = f"{size >> 20} MiB {name} the guest: runvm's {stream} / bare virtio port"
            bench.add(Figure(FAMILY, what, value, "x", "median of pairs; exec's start is in it", 2.0, samples))
    finally:
        vm.close()
        bench.delete(bench.runvm, cid)


def _out(bench: Bench, cid: str, size: int) -> float:
    argv = [*bench.runvm.argv, "exec", cid, "dd", "if=/dev/zero", f"bs={_BLOCK}", f"count={size // _BLOCK}"]
    begun = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as command:
        assert command.stdout is not None
        came = 0
        while data := os.read(command.stdout.fileno(), 1 << 20):
            came += len(data)
        command.wait(SECONDS)
    _whole(came, size, command.returncode)
    return (time.perf_counter() - begun) * 1000


def _in(bench: Bench, cid: str, size: int) -> float:
    argv = [*bench.runvm.argv, "exec", cid, "sh", "-c", f"[ $(wc -c) = {size} ]"]
    begun = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as command:
        assert command.stdin is not None
        block = bytes(_BLOCK)
        for _ in range(size // _BLOCK):
            command.stdin.write(block)
        command.stdin.close()
        command.wait(SECONDS)
    _whole(size, size, command.returncode)
    return (time.perf_counter() - begun) * 1000


def _bare_out(vm: FloorVm, size: int) -> float:
    begun = time.perf_counter()
    vm.send(f"dd if=/dev/zero of=/run/data bs={_BLOCK} count={size // _BLOCK} 2>/run/dd")
    came = 0
    vm.lines.data.settimeout(SECONDS)
    while came < size:
        data = vm.lines.data.recv(1 << 20)
        if not data:
            break
        came += len(data)
    _whole(came, size, vm.answer())
    return (time.perf_counter() - begun) * 1000


def _bare_in(vm: FloorVm, size: int) -> float:
    begun = time.perf_counter()
    vm.send(f"[ $(head -c {size} /run/data | wc -c) = {size} ]")
    block = bytes(_BLOCK)
    data: socket.socket = vm.lines.data
    data.settimeout(SECONDS)
    for _ in range(size // _BLOCK):
        data.sendall(block)
    _whole(size, size, vm.answer())
    return (time.perf_counter() - begun) * 1000


def _whole(came: int, size: int, code: int) -> None:
    if came != size or code != 0:
        raise Skip(f"{came} of {size} bytes came, code {code}")
