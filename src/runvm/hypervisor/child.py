"""Work in a process of its own, whose error comes back to the one that waits: guests that are booted where no container
waits for them, and the copy of a VM's memory."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from runvm.errors import DeadlineError, GuestError, HostError, KilledError, RunvmError, VmmError, words
from runvm.linux import process, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS = {kind.__name__: kind for kind in (DeadlineError, GuestError, HostError, KilledError, VmmError)}
_FAILED = 3
_MAX_DETAILS = 20_000


class Child:
    """*action* running in a forked process that ends with this one; *what* names it in errors ("the boot of a guest").
    wait() or kill() ends its life."""

    def __init__(self, action: Callable[[], None], what: str) -> None:
        self._what = what
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()

        def child() -> None:
            process.die_with_parent(parent)
            try:
                action()
            except RunvmError as error:
                report = [type(error).__name__, error.message, error.do, error.details[-_MAX_DETAILS:]]
            except OSError as error:
                report = ["HostError", words(error), "", ""]
            else:
                return
            import json

            os.write(writer, json.dumps(report).encode())
            os._exit(_FAILED)

        try:
            self._pid = process.fork(child)
            self._fd = os.pidfd_open(self._pid)
        finally:
            os.close(writer)

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._fd

    def wait(self, *, deadline: float) -> None:
        """Until *action* is done; its RunvmError is raised here. Raises DeadlineError, and the process is killed then;
        KilledError; HostError where it ended without a word."""
        status = process.wait_child(self._pid, deadline=deadline)
        if status is None:
            self.kill()
            raise DeadlineError(f"timed out waiting for {self._what}")
        self._pid = -1
        data = os.read(self._reader, 65536) if status else b""  # its only writer has ended
        self._close()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            raise KilledError(f"the process of {self._what} was killed")
        if status:
            ended = f"the process of {self._what} ended with {process.exit_code(status)}"
            kind, message, do, details = ["HostError", ended, "", ""]
            if data:
                import json

                kind, message, do, details = json.loads(data)
            raise _KINDS.get(kind, GuestError)(message, do=do, details=details)

    def kill(self) -> None:
        """End the process, and with it what it has started; nothing where it has been waited for."""
        if self._pid > 0:
            pid, self._pid = self._pid, -1
            process.end_child(pid, self._what)
            self._close()

    def _close(self) -> None:
        os.close(self._reader)
        os.close(self._fd)


def isolated(action: Callable[[], None]) -> Child:
    """*action*, which boots a guest, in a process whose mounts go with it."""

    def alone() -> None:
        os.umask(0o022)  # the hypervisor, of another user, looks into its jail
        syscalls.raise_limits()
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
        action()

    return Child(alone, "a guest to boot")
