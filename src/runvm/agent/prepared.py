"""A `crun create` that is in the template, waiting for its config.json: the first container of a VM goes on from there.

To start crun is a quarter of what it takes to make a container in an emulated guest: all that the kernel's execve(2),
the dynamic linker and crun run through has to be translated first.

Its config.json is a FIFO until then, in whose open(2) crun waits (fifo(7)). As crun reads the file twice, the real one
takes the FIFO's place before crun may go on.
"""

from __future__ import annotations

import fcntl
import os
import resource
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
_FIFO = "config.fifo"
_SECONDS = 5.0


class Prepared:
    """The waiting crun: its *bundle*, its *pipes* for the container's standard streams, its *pid*."""

    def __init__(self, crun: Crun, bundle: str) -> None:
        self.bundle = bundle
        os.makedirs(bundle, mode=0o700)
        os.mkfifo(f"{bundle}/config.json", 0o600)
        os.link(f"{bundle}/config.json", f"{bundle}/{_FIFO}")
        self.pipes = pipes.make()
        self._ended: Callable[[int], None] | None = None
        self.waits = True
        self.pid = crun.run(bundle, [*crun.create_options(bundle), NAME], self._end, list(self.pipes.theirs))
        for fd in self.pipes.theirs:
            os.close(fd)

    def settle(self) -> None:
        """Wait until this crun waits for its config.json: then clones of the template have its start behind them."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline and files.read(f"/proc/{self.pid}/wchan") != "wait_for_partner":
            time.sleep(0.01)

    def fits(self, request: Create) -> bool:
        """Whether it can create the container: one without a terminal, further descriptors, and hooks in the guest."""
        spec = request.spec
        return self.waits and not (spec["process"].get("terminal") or request.passed or spec.get("hooks"))

    def limit_files(self, limit: int) -> None:
        """The hard limit of open files, which the container inherits from here."""
        if self.waits:
            soft, _ = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (soft, limit))

    def go_on(self, config: str, ended: Callable[[int], None]) -> None:
        """Create the container of *config*; *ended* gets crun's status. Raises OSError."""
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
