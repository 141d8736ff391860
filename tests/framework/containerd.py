"""A real containerd of our own: Docker's, or called by ctr, or by crictl (framework.cri)."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from framework.bundle import CGROUP_PARENT
from framework.process import Process, Result, call, stop, wait_until

if TYPE_CHECKING:
    from framework.runtime import Runtime

# ctr makes the cgroup /<namespace>/<id>, so that what it leaves is known for ours
NAMESPACE = CGROUP_PARENT.strip("/")


def has_metrics() -> bool:
    """Whether containerd can read a task's metrics on this host: on cgroup v1 it wants each hierarchy mounted that
    /proc/self/cgroup lists, whatever the runtime."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        lists = [line.split(":")[1].removeprefix("name=") for line in file]
    return all(os.path.isdir(f"/sys/fs/cgroup/{name}") for names in lists for name in names.split(","))


class Containerd:
    """containerd below *directory*, without CRI."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.address = f"{directory}/containerd.sock"
        self._process: Process | None = None
        os.makedirs(directory, exist_ok=True)

    def start(self) -> None:
        """Start it and wait for its socket."""
        config = f"{self.directory}/containerd.toml"
        with open(config, "w", encoding="utf-8") as file:
            file.write(self.configuration())
        with open(f"{self.directory}/containerd.log", "ab") as log:
            self._process = Process(["containerd", "--config", config], stdout=log, stderr=log, die_with_us=True)
        wait_until(lambda: os.path.exists(self.address), timeout=30, what="containerd's socket")

    def configuration(self) -> str:
        """Its config.toml."""
        return (
            "version = 2\n"
            f"root = {json.dumps(self.directory + '/root')}\n"
            f"state = {json.dumps(self.directory + '/state')}\n"
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f"[grpc]\naddress = {json.dumps(self.address)}\n"
        )

    def stop(self) -> None:
        """End it; the shims of containers go on."""
        stop(self._process, 15)
        self._process = None

    def ctr(self, *args: str, stdin: bytes | int = b"", timeout: float = 120) -> Result:
        """A ctr command to its end."""
        return call(self.argv(*args), stdin=stdin, timeout=timeout)

    def argv(self, *args: str) -> list[str]:
        """The command of ctr."""
        return ["ctr", "--address", self.address, "--namespace", NAMESPACE, *args]

    def run(self, runtime: Runtime, *flags: str, rootfs: str, name: str, argv: list[str], stdin: bytes = b"") -> Result:
        """`ctr run` of a directory as root."""
        flags = ("--runc-binary", runtime.path, "--env", "PATH=/bin", *flags, "--rootfs")
        return self.ctr("run", *flags, rootfs, name, *argv, stdin=stdin)
