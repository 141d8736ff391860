"""Podman as a user of its own who has no privileges, with subordinate ids: for what rootless containers do.

The host's /etc has no such user: each command runs in a mount namespace in which the files that name users are others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from framework import process
from framework.engine import Engine
from framework.process import Result, call
from framework.runtime import HYPERVISOR, SOURCE

if TYPE_CHECKING:
    from framework.runtime import Runtime

IMAGE = "localhost/busybox:test"
UID = 7001
SUBORDINATE = 300000
"""The first of the 65536 ids that the user may give away."""

_WRAPPER = """#!/usr/bin/python3
import os, sys
sys.path[0] = {source!r}
os.environ["RUNVM_CONFIG"] = {config!r}
from runvm.__main__ import entry
sys.exit(entry())
"""
# /dev/net/tun and /dev/fuse are everybody's where udev has made them
_ENTER = """
cd {directory}
for file in passwd group subuid subgid; do mount --bind etc/$file /etc/$file; done
mount --bind dev/tun /dev/net/tun
mount --bind dev/fuse /dev/fuse
cd home
exec setpriv --reuid {uid} --regid {uid} --clear-groups "$@"
"""


def missing() -> str:
    """Which program isn't there, '' when all are."""
    needed = ("podman", "conmon", "newuidmap", "slirp4netns", "setpriv", "unshare")
    return next((name for name in needed if shutil.which(name) is None), "")


class Rootless(Engine):
    """`call` runs podman as the user. `close` ends what the user runs."""

    def __init__(self, directory: str, runtime: Runtime, template: str) -> None:
        self.directory = directory
        self.runtime = runtime
        self._template = template
        self.home = f"{directory}/home"

    def open(self) -> None:
        """Make the user's files, and import the image."""
        for name in ("etc", "dev", "home", "run"):
            os.makedirs(f"{self.directory}/{name}")
        for name in ("home", "run"):
            os.chown(f"{self.directory}/{name}", UID, UID)
            os.chmod(f"{self.directory}/{name}", 0o700)
        for name, line in (
            ("passwd", f"rvuser:x:{UID}:{UID}::{self.home}:/bin/sh"),
            ("group", f"rvuser:x:{UID}:"),
            ("subuid", f"rvuser:{SUBORDINATE}:65536"),
            ("subgid", f"rvuser:{SUBORDINATE}:65536"),
        ):
            with open(f"/etc/{name}", encoding="utf-8") as file:
                text = file.read()
            with open(f"{self.directory}/etc/{name}", "w", encoding="utf-8") as file:
                file.write(f"{text}{line}\n")
        for name, minor in (("tun", 200), ("fuse", 229)):
            path = f"{self.directory}/dev/{name}"
            os.mknod(path, 0o020666, os.makedev(10, minor))
            os.chmod(path, 0o666)
        # the checkout may be where only root may look
        shutil.copytree(f"{SOURCE}/runvm", f"{self.directory}/src/runvm", ignore=shutil.ignore_patterns("__pycache__"))
        with open(f"{self.directory}/config.toml", "w", encoding="utf-8") as file:
            if data_dir := os.environ.get("RUNVM_TEST_DATA_DIR"):
                file.write(f'data_dir = "{data_dir}"\n')
            file.write(f'hypervisor = "{HYPERVISOR}"\nboot_timeout_s = 180\n')
        with open(f"{self.directory}/runvm", "w", encoding="utf-8") as file:
            file.write(_WRAPPER.format(source=f"{self.directory}/src", config=f"{self.directory}/config.toml"))
        os.chmod(f"{self.directory}/runvm", 0o755)
        tar = subprocess.run(["tar", "-C", self._template, "-c", "."], check=True, capture_output=True, timeout=60)
        change = ["--change", 'CMD ["sh"]', "--change", "ENV PATH=/bin:/usr/bin"]
        self.ok("import", *change, "-", IMAGE, stdin=tar.stdout)

    def as_user(self, *argv: str) -> list[str]:
        """The command line that runs *argv* as the user."""
        enter = _ENTER.format(directory=self.directory, uid=UID)
        environment = [
            f"PATH={os.environ['PATH']}",
            f"HOME={self.home}",
            "USER=rvuser",
            f"XDG_RUNTIME_DIR={self.directory}/run",
        ]
        return ["unshare", "-m", "--propagation", "slave", "sh", "-c", enter, "sh", "env", "-i", *environment, *argv]

    def argv(self, *args: str) -> list[str]:
        """The command."""
        program = f"{self.directory}/runvm" if self.runtime.is_vm else self.runtime.path
        return self.as_user("podman", "--events-backend", "none", "--runtime", program, *args)

    def call(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> Result:
        """A command to its end; the first that starts a VM boots a template of the user's own."""
        return call(self.argv(*args), stdin=stdin, timeout=timeout or self.runtime.timeout + 180)

    def ok(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> str:
        """The output of a command that must succeed."""
        return self.call(*args, stdin=stdin, timeout=timeout).expect(0).text

    def close(self) -> None:
        """Remove the containers, and end the process that keeps the user's namespaces."""
        try:
            self.ok("pod", "rm", "--force", "--all", "--time", "0")
            self.ok("rm", "--force", "--all", "--volumes", "--time", "0")
        finally:
            self.call("system", "migrate")
            process.reap_orphans()
            shutil.rmtree(self.directory)
