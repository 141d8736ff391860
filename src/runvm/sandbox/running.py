"""The VM of a supervisor while it runs: the VMM, virtiofsd, the agent's line, the console, the networks."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from runvm.hypervisor import boot
from runvm.linux import process
from runvm.linux.loop import IN, Loop
from runvm.log import log
from runvm.sandbox import diagnosis
from runvm.sandbox.growth import Growth
from runvm.sandbox.guest_link import GuestLink
from runvm.sandbox.host_changes import HostChanges
from runvm.sandbox.host_sockets import HostSockets
from runvm.sandbox.own_servers import OwnServers
from runvm.sandbox.socket_directories import SocketDirectories

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.protocol.frames import Frame
    from runvm.sandbox.plan import Started, VmPlan

_ENDING_SECONDS = 0.5
"""How long a process whose connection has closed may take to end."""


class RunningVm:
    """What *started* for *plan*, watched by *loop*: *on_event* and *on_frame* get what the guest says, *on_failure*
    the reason when a part of it has ended. *next_channel* numbers a new channel. It is closed once."""

    def __init__(
        self,
        loop: Loop,
        plan: VmPlan,
        started: Started,
        *,
        on_event: Callable[[Any], None],
        on_frame: Callable[[Frame], None],
        on_failure: Callable[[str], object],
        next_channel: Callable[[], int],
    ) -> None:
        self.guest, self.daemon, self.networks, _ = started
        self._loop = loop
        self._on_failure = on_failure
        self._directory = plan.sandbox.directory
        self._watched: list[int] = []
        self._closed = False
        self.agent = GuestLink(
            loop,
            self.guest.agent.detach(),
            on_event=on_event,
            on_frame=on_frame,
            on_close=lambda reason: self._guest_ended(reason),
            diagnosis=self.diagnosis,
        )
        self.guest.vm.attach(loop)
        self.sockets = HostSockets(loop, self.agent, next_channel)
        self.share = f"{self._directory}/share"
        self.changes = HostChanges(loop, self.agent, self.share, self.daemon.pid)
        own = OwnServers(loop, self.agent, self.sockets, self._directory, next_channel)
        self.socket_directories = SocketDirectories(loop, self.agent, self._directory, own)
        self.sockets.on_failure = self.socket_directories.failed
        self.networks.attach(loop, self.guest.vm, self.agent, next_channel)
        self.growth = Growth(
            loop, plan.config, plan.machine, plan.max_mib, self.guest.vm, self.agent, plan.driver.capabilities
        )
        self._watch_child(self.guest.vm.pid, "the VMM")
        self._watch_child(self.daemon.pid, "virtiofsd")
        loop.watch(self.guest.console.fileno(), IN, self._console)
        loop.watch(self.daemon.output, IN, self._daemon_output)

    def _guest_ended(self, reason: str) -> None:
        self._on_failure(f"the guest has ended ({reason})")

    def close(self) -> None:
        """End all of it. Once: the ids of processes that have been reaped are others' already."""
        if self._closed:
            return
        self._closed = True
        for fd in self._watched:
            self._loop.forget(fd)
            os.close(fd)
        self._loop.forget(self.guest.console.fileno())
        self._loop.forget(self.daemon.output)
        self.sockets.close()
        self.changes.close()
        self.socket_directories.close()
        self.agent.close()
        # its memory goes while the VMM ends, which takes as long: one after the other, an end would take twice that
        for pid in (self.guest.vm.pid, self.daemon.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        boot.free_memory(self._directory)
        with ExitStack() as undo:  # what fails doesn't spare the rest
            undo.callback(self.networks.close)
            undo.callback(self.daemon.kill)
            undo.callback(log.debug, "supervisor: VMM ended")
            undo.callback(self.guest.kill)
            undo.callback(self._write_console)

    def how_ended(self) -> str:
        """Which of its processes has ended, and how: 'the VMM exited with 1'; '' where none has."""
        deadline = time.monotonic() + _ENDING_SECONDS
        children = (("the VMM", self.guest.vm.pid), ("virtiofsd", self.daemon.pid))
        found = [f"{name} {how}" for name, pid in children if (how := process.how_ended(pid, deadline=deadline))]
        return " and ".join(found)

    def diagnosis(self) -> str:
        """What its processes and the guest's console said last: the cause of a start that failed."""
        self.daemon.keep_output()
        return diagnosis.last_lines(self._directory, console=self.guest.console_end())

    def _watch_child(self, pid: int, what: str) -> None:
        fd = os.pidfd_open(pid)

        def gone(events: int) -> None:
            self._loop.forget(fd)
            self._on_failure(f"{what} has ended")

        self._watched.append(fd)
        self._loop.watch(fd, IN, gone)

    def _console(self, events: int) -> None:
        before = self.guest.console_tail
        self.guest.read_console()
        if self.guest.console_tail is before:
            self._loop.forget(self.guest.console.fileno())

    def _daemon_output(self, events: int) -> None:
        if not self.daemon.keep_output():
            self._loop.forget(self.daemon.output)

    def _write_console(self) -> None:
        self.guest.read_console()
        with suppress(OSError), open(f"{self._directory}/console.log", "wb") as file:
            file.write(self.guest.console_tail)
