"""Calls of crun that wait in the template for their config.json: one for the first container of a VM, and one for a
rehearsal.

To start crun is a quarter of what it takes to make a container in an emulated guest: all that the kernel's execve(2),
the dynamic linker and crun run through has to be translated first. What it still takes then is mostly translation, too,
so a container that nobody asked for goes first, on a processor that is idle while the guest wakes.

Their config.json is a FIFO until then, in whose open(2) crun waits (fifo(7)). As crun reads the file twice, the real
one takes the FIFO's place before crun may go on.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from runvm.agent import pipes
from runvm.linux import files

if TYPE_CHECKING:
    from runvm.agent.crun import Crun
    from runvm.protocol.messages import Create

NAME = "=first"
"""crun's name for the container, which only hooks in the guest come to know; no container's own, for its '='."""
_REHEARSAL = "=rehearsal"
_FIFO = "config.fifo"
_SECONDS = 5.0


class Waiting:
    """A crun that waits in *bundle*, which is there."""

    def __init__(self, crun: Crun, bundle: str, arguments: list[str], stdio: list[int] | None) -> None:
        self.bundle = bundle
        os.mkfifo(f"{bundle}/config.json", 0o600)
        os.link(f"{bundle}/config.json", f"{bundle}/{_FIFO}")
        self._ended: Callable[[int], None] | None = None
        self.waits = True
        self.pid = crun.run(bundle, arguments, self._end, stdio)

    def settle(self) -> None:
        """Wait until it waits itself, so that nothing of its start is left to the clones of the template."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline and files.read(f"/proc/{self.pid}/wchan") != "wait_for_partner":
            time.sleep(0.01)

    def go_on(self, config: str, ended: Callable[[int], None]) -> None:
        """Let it have its *config*; *ended* gets its status. Raises OSError."""
        self.waits = False
        self._ended = ended
        files.write(f"{self.bundle}/config.new", config, make=True)
        os.rename(f"{self.bundle}/config.new", f"{self.bundle}/config.json")
        fd = os.open(f"{self.bundle}/{_FIFO}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = config.encode()
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, max(len(data), resource.getpagesize()))
            os.write(fd, data)
        finally:
            os.close(fd)

    def _end(self, status: int) -> None:
        self.waits = False
        if self._ended is not None:
            self._ended(status)


class Prepared(Waiting):
    """The `crun create` for a VM's first container, and the *pipes* for its standard streams."""

    def __init__(self, crun: Crun, bundles: str) -> None:
        bundle = f"{bundles}/{NAME}"
        os.makedirs(bundle, mode=0o700)
        self.pipes = pipes.make()
        super().__init__(crun, bundle, [*crun.create_options(bundle), NAME], list(self.pipes.theirs))
        for fd in self.pipes.theirs:
            os.close(fd)

    def fits(self, request: Create) -> bool:
        """Whether it can create the container: one without a terminal, further descriptors, and hooks in the guest."""
        spec = request.spec
        return self.waits and not (spec["process"].get("terminal") or request.passed or spec.get("hooks"))

    def limit_files(self, most: int) -> None:
        """The hard limit of open files, which the container inherits from here."""
        if self.waits:
            soft, _ = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (soft, most))


class Rehearsal(Waiting):
    """The `crun run` of a container that does nothing, with what most containers have: it leaves nothing behind."""

    def __init__(self, crun: Crun, bundles: str) -> None:
        bundle = f"{bundles}/{_REHEARSAL}"
        os.makedirs(f"{bundle}/rootfs/bin")
        for name in ("proc", "sys", "dev"):
            os.mkdir(f"{bundle}/rootfs/{name}")
        shutil.copy("/usr/bin/busybox", f"{bundle}/rootfs/bin/true")
        super().__init__(crun, bundle, ["run", f"--bundle={bundle}", "--no-new-keyring", _REHEARSAL], None)

    def begin(self) -> None:
        """Go through it, beside whatever else is to be done. Raises OSError."""
        self.go_on(json.dumps(_CONFIG), lambda status: shutil.rmtree(self.bundle, ignore_errors=True))


_CAPABILITIES = ["CAP_CHOWN", "CAP_KILL"]
_CONFIG = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/true"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs"},
    "hostname": "rehearsal",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "newinstance"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "size=64k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]},
    ],
    "linux": {
        "cgroupsPath": f"/{_REHEARSAL}",
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")],
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "maskedPaths": ["/proc/kcore", "/proc/acpi", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/sys"],
    },
}
