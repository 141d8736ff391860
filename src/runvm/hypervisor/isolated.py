"""A child process with a mount namespace of its own, in which a guest is booted that no container waits for: to make a
template, or to prove that an accelerator works."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

from runvm.errors import DeadlineError, GuestError, HostError, RunvmError, VmmError
from runvm.linux import process, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS = {kind.__name__: kind for kind in (DeadlineError, GuestError, HostError, VmmError)}
_FAILED = 3
_MAX_DETAILS = 20_000


class Isolated:
    """*action* running in a forked child whose mounts go with it. wait() or kill() ends its life."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()

        def child() -> None:
            process.die_with_parent(parent)
            os.umask(0o022)  # the hypervisor, of another user, looks into its jail
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
            try:
                action()
            except RunvmError as error:
                report = [type(error).__name__, error.message, error.do, error.details[-_MAX_DETAILS:]]
            except OSError as error:
                report = ["HostError", str(error), "", ""]
            else:
                return
            os.write(writer, json.dumps(report).encode())
            os._exit(_FAILED)

        self._pid = process.fork(child)
        os.close(writer)
        self._fd = os.pidfd_open(self._pid)

    def fileno(self) -> int:
        """Readable once the child has ended."""
        return self._fd

    def wait(self, *, deadline: float) -> None:
        """Until *action* is done; its RunvmError is raised here. Raises DeadlineError, and the child is killed then."""
        status = process.wait_child(self._pid, deadline=deadline)
        if status is None:
            self.kill()
            raise DeadlineError("timed out waiting for a guest to boot")
        data = os.read(self._reader, 65536) if status else b""  # its only writer has ended
        self._close()
        if status:
            ended = f"the process that boots a guest ended with {process.exit_code(status)}"
            kind, message, do, details = json.loads(data) if data else ("HostError", ended, "", "")
            raise _KINDS.get(kind, GuestError)(message, do=do, details=details)

    def kill(self) -> None:
        """End the child, and with it what it has started."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._close()

    def _close(self) -> None:
        os.close(self._reader)
        os.close(self._fd)


def run(action: Callable[[], None], *, timeout: float) -> None:
    """Run *action* isolated for at most *timeout* seconds. Raises what it raises, and DeadlineError."""
    Isolated(action).wait(deadline=time.monotonic() + timeout)
