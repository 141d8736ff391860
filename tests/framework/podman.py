"""Podman with storage, state and networks of its own, calling the tested runtime through conmon."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from framework import process
from framework.bundle import CGROUP_PARENT
from framework.engine import Engine, unmount_below
from framework.firewall import Firewall
from framework.process import Result, call

if TYPE_CHECKING:
    from framework.runtime import Runtime

IMAGE = "localhost/busybox:test"
PARENT = f"{CGROUP_PARENT}/podman"

# What Podman asks for (NOFILE 1048576) a runtime on the host can't give where root lacks CAP_SYS_RESOURCE; a VM can
_CONTAINERS = """
[containers]
{ulimits}
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
stop_timeout = 2
static_dir = "{directory}/static"
tmp_dir = "{directory}/tmp"
volume_path = "{directory}/volumes"
[network]
network_config_dir = "{directory}/networks"
default_subnet = "10.215.0.0/24"
default_subnet_pools = [{{"base" = "10.216.0.0/16", "size" = 24}}]
"""


def missing() -> str:
    """Which program isn't there, '' when all are."""
    return next((name for name in ("podman", "conmon") if shutil.which(name) is None), "")


class Podman(Engine):
    """`call` runs podman. `close` takes all away."""

    def __init__(self, directory: str, runtime: Runtime, template: str) -> None:
        self.directory = directory
        self.runtime = runtime
        self._template = template
        self._firewall = Firewall()
        os.makedirs(directory)
        ulimits = "" if runtime.is_vm else 'default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]'
        with open(f"{directory}/containers.conf", "w", encoding="utf-8") as file:
            file.write(_CONTAINERS.format(directory=directory, ulimits=ulimits))

    def open(self) -> None:
        """Import the image, and run one container."""
        # a dockerd beside us has made DROP the policy, past which no other table can let a packet, as netavark's of
        # nftables would; restored with the rules
        subprocess.run(["iptables", "-P", "FORWARD", "ACCEPT"], check=False, timeout=10, capture_output=True)
        tar = subprocess.run(["tar", "-C", self._template, "-c", "."], check=True, capture_output=True, timeout=60)
        change = ["--change", 'CMD ["sh"]', "--change", "ENV PATH=/bin:/usr/bin"]
        self.ok("import", *change, "-", IMAGE, stdin=tar.stdout)
        self.run(IMAGE, "true").expect(0)

    def argv(self, *args: str) -> list[str]:
        """The command: `env` sets the configuration, for a terminal session too."""
        flags = [
            "--root",
            f"{self.directory}/root",
            "--runroot",
            f"{self.directory}/run",
            "--storage-driver",
            "overlay",
        ]
        config = f"CONTAINERS_CONF={self.directory}/containers.conf"
        quiet = "PODMAN_IGNORE_CGROUPSV1_WARNING=1"  # Podman 5 says on stderr that these cgroups are old
        return ["env", config, quiet, "podman", *flags, "--runtime", self.runtime.path, *args]

    def call(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> Result:
        """A command to its end."""
        return call(self.argv(*args), stdin=stdin, timeout=timeout or self.runtime.timeout + 30)

    def ok(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> str:
        """The output of a command that must succeed."""
        return self.call(*args, stdin=stdin, timeout=timeout).expect(0).text

    def run(self, *args: str, stdin: bytes | int = b"") -> Result:
        """`podman run --rm …` in the foreground."""
        return self.call("run", "--rm", "--cgroup-parent", PARENT, *args, stdin=stdin)

    def detached(self, *args: str) -> str:
        """`podman run --detach …`: the id. conmon holds no stream of ours."""
        return self.ok("run", "--detach", "--cgroup-parent", PARENT, *args)

    def remove_all(self) -> None:
        """Every pod and container, running or not."""
        self.ok("pod", "rm", "--force", "--all", "--time", "0")
        self.ok("rm", "--force", "--all", "--volumes", "--time", "0")

    def close(self) -> None:
        """Remove all containers, networks and mounts, and undo the packet filter's rules."""
        try:
            self.remove_all()
            self.call("network", "prune", "--force")
        finally:
            process.reap_orphans()
            subprocess.run(["ip", "link", "delete", "podman0"], check=False, timeout=10, capture_output=True)
            self._firewall.restore(("10.215.", "10.216."))
            unmount_below(self.directory)
