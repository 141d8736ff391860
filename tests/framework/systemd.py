"""A systemd as process 1 of a container that runc runs, on a copy-on-write copy of this host: Podman with its cgroups.

Written over in a tmpfs, nothing of the host's changes. Control groups are the container's own part of the host's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from framework.podman import PARENT
from framework.process import Result, wait_until
from framework.runtime import SOURCE

if TYPE_CHECKING:
    from framework.podman import Podman

SYSTEMD = "/lib/systemd/systemd"
IMAGE = "localhost/busybox:test"

_WRAPPER = """#!/usr/bin/python3
import os, sys
sys.path[0] = {source!r}
os.environ["RUNVM_CONFIG"] = {config!r}
from runvm.__main__ import entry
sys.exit(entry())
"""
_CONTAINERS = """
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "systemd"
events_logger = "none"
runtime = "runvm"
stop_timeout = 10
[engine.runtimes]
runvm = ["{tools}/runvm"]
"""
# on the copy-on-write root the kernel's overlayfs can't be used once more
_STORAGE = """
[storage]
driver = "vfs"
graphroot = "/var/lib/inner"
runroot = "/run/inner"
"""
_EMPTY = ("tmp", "run", "var/tmp", "var/log", "var/lib/containers", "etc/systemd/system")
"""What of this host isn't seen there: its services, and what Podman would copy."""


def missing() -> str:
    """Which program isn't there, '' when all are."""
    return next((name for name in (SYSTEMD, "busctl", "podman", "runc") if shutil.which(name) is None), "")


def _unused_controllers() -> set[str]:
    """Those of cgroup v1 in no hierarchy."""
    with open("/proc/cgroups", encoding="ascii") as file:
        fields = [line.split() for line in file if not line.startswith("#")]
    return {name for name, hierarchy, *_ in fields if hierarchy == "0"}


class SystemdHost:
    """`call` runs a command there. `close` takes all away."""

    def __init__(self, directory: str, podman: Podman) -> None:
        self.directory = directory
        self._podman = podman
        self._name = "systemd"
        self._tools = f"{directory}/tools"
        self._root = f"{directory}/over/merged"
        self._unused = _unused_controllers()

    def open(self) -> None:
        """Start it, and import the image into its Podman."""
        over = f"{self.directory}/over"
        for path in (self._tools, over):
            os.makedirs(path)
        self._mount("-t", "tmpfs", "-o", "size=2g", f"{self.directory}-over", over)
        for name in ("upper", "work", "merged"):
            os.mkdir(f"{over}/{name}")
        for name in _EMPTY:
            os.makedirs(f"{over}/upper/{name}")
            os.setxattr(f"{over}/upper/{name}", "trusted.overlay.opaque", b"y")
        layers = f"lowerdir=/,upperdir={over}/upper,workdir={over}/work"
        self._mount("-t", "overlay", "-o", layers, f"{self.directory}-merged", self._root)
        data_dir = os.environ.get("RUNVM_TEST_DATA_DIR", "/var/lib/runvm")
        for path, text in (
            (f"{self._tools}/config.toml", f'data_dir = "{data_dir}"\n'),
            (f"{self._tools}/runvm", _WRAPPER.format(source=SOURCE, config=f"{self._tools}/config.toml")),
            (f"{self._root}/etc/containers/containers.conf", _CONTAINERS.format(tools=self._tools)),
            (f"{self._root}/etc/containers/storage.conf", _STORAGE),
        ):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        os.chmod(f"{self._tools}/runvm", 0o755)
        flags = ["--privileged", "--cgroupns", "private", "--systemd=false", "--env", "container=podman"]
        flags += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--network", "none"]
        for path in ("/run", "/run/lock", "/tmp"):
            flags += ["--tmpfs", path]
        for path in (self._tools, data_dir):
            flags += ["--volume", f"{path}:{path}"]
        command = [SYSTEMD, "systemd.unit=basic.target"]
        self._outer(
            *("run", "--detach", "--name", self._name, "--cgroup-parent", PARENT, *flags, "--rootfs", self._root),
            *command,
        ).expect(0)
        up = ("running", "degraded")
        wait_until(lambda: self.call("systemctl", "is-system-running").text in up, timeout=60, what="systemd")
        image = subprocess.run([*self._podman.argv("save", IMAGE)], check=True, capture_output=True, timeout=60)
        self._outer("exec", "--interactive", self._name, "podman", "load", stdin=image.stdout).expect(0)

    def call(self, *argv: str) -> Result:
        """A command to its end."""
        return self._outer("exec", self._name, *argv)

    def ok(self, *argv: str) -> str:
        """The output of a command that must succeed."""
        return self.call(*argv).expect(0).text

    def write(self, path: str, text: str) -> None:
        """A file there."""
        self._outer("exec", "--interactive", self._name, "tee", path, stdin=text.encode()).expect(0)

    def close(self) -> None:
        """End all of it."""
        self._outer("rm", "--force", "--time", "0", self._name)
        for path in (self._root, f"{self.directory}/over"):
            if os.path.ismount(path):
                subprocess.run(["umount", path], check=True, timeout=30)
        self._let_controllers_go()
        shutil.rmtree(self.directory)

    def _let_controllers_go(self) -> None:
        """systemd takes every controller of cgroup v1 that nobody uses, and a hierarchy goes with its last group: kept,
        it is in the /proc/cgroups of engines that then look for its mount."""
        place = f"{self.directory}/cgroup"
        os.mkdir(place)
        for controller in self._unused - _unused_controllers():
            if subprocess.run(["mount", "-t", "cgroup", "-o", controller, "cgroup", place], check=False).returncode:
                continue  # its companion has been taken down already
            for path, _, _ in os.walk(place, topdown=False):
                if path != place:
                    os.rmdir(path)
            subprocess.run(["umount", place], check=True, timeout=30)

    def _outer(self, *args: str, stdin: bytes = b"") -> Result:
        runc = shutil.which("runc") or ""
        return self._podman.call("--runtime", runc, *args, stdin=stdin, timeout=240)

    def _mount(self, *args: str) -> None:
        subprocess.run(["mount", *args], check=True, timeout=30)
