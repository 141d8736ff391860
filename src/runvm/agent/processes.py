"""The processes of containers, each on a channel of its own: their streams, their terminal, their end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from runvm.agent import cgroups, crun, pipes
from runvm.agent.children import Children
from runvm.agent.crun import Crun
from runvm.agent.crun_output import Filter, Hooks
from runvm.agent.errors import AgentError
from runvm.agent.notify import Notify
from runvm.agent.pipes import Pipes
from runvm.agent.prepared import Prepared
from runvm.linux import files, sockets
from runvm.linux.loop import Loop
from runvm.linux.terminal import keep_newlines, set_size
from runvm.protocol import frames, names
from runvm.protocol.frames import Frame
from runvm.protocol.gate import Gate
from runvm.protocol.messages import Exited, Json
from runvm.protocol.streams import Sink, StreamSource

_STOP_WAIT = 0.2
"""Seconds that the end of a container's output, or a terminal's, is waited for once its process has ended: by then
nobody can write there any more."""


class Container:
    """A container of this VM; *crun_name* is what crun knows it by."""

    def __init__(self, name: str, crun_name: str, bundle: str, network: int) -> None:
        self.name = name
        self.crun_name = crun_name
        self.bundle = bundle
        self.network = network
        self.init: GuestProcess | None = None
        self.started = False
        self.processes: dict[int, GuestProcess] = {}
        self.cgroup = cgroups.path(name)
        self.cpu: dict[str, int] = {}
        """The quota of CPU time that holds once its process runs (cgroups.hold_back())."""
        self.submounts: set[str] = set()
        self.oom_kills = 0
        self.notify: Notify | None = None
        self.hooks: Hooks | None = None
        self.share = ""
        """Its directory in the share."""
        self.mounts: dict[int, str] = {}
        """Where it has the host's directories, by their mounts' numbers."""


class GuestProcess:
    """One process of a container with its streams: its init (`crun create`), or a further one (`crun exec`)."""

    def __init__(self, container: Container, channel: int) -> None:
        self.container = container
        self.channel = channel
        self.pid = 0
        self.status: int | None = None
        self.killed_by = 0
        """The signal that it was to get when it was killed in its place."""
        self.sinks: dict[int, Sink] = {}
        self.sources: dict[int, StreamSource] = {}
        self.terminal = -1
        self.reported = False
        self.filter: Filter | None = None


class _Console:
    """The socket over which crun sends the master of a new terminal, which is to have *size* (rows, columns); *plain*:
    its lines end with LF alone."""

    def __init__(self, path: str, size: tuple[int, int], *, plain: bool) -> None:
        self.path = path
        self.size = size
        self.plain = plain
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sockets.bind(self.listener, path)
        self.listener.listen(1)

    def close(self) -> None:
        """There will be no more."""
        self.listener.close()
        os.unlink(self.path)


def _plain(master: int) -> bytes:
    """Have a terminal's lines end with LF alone; what has been printed by now, as its process may run already, with
    that done. Raises OSError."""
    keep_newlines(master)
    os.set_blocking(master, False)
    printed = b""
    with suppress(OSError):  # EAGAIN: that was all; EIO: it has ended
        while len(printed) < frames.CHUNK and (data := os.read(master, frames.CHUNK)):
            printed += data
    return printed.replace(b"\r\n", b"\n")


class Processes:
    """All processes of this VM's containers. *send* queues a frame to the host, *event* a message; *ending* is called
    before the end of one is told."""

    def __init__(
        self,
        loop: Loop,
        children: Children,
        crun: Crun,
        send: Callable[[int, int, bytes], None],
        event: Callable[[Any], None],
        ending: Callable[[GuestProcess], None],
        gate: Gate,
    ) -> None:
        self._loop = loop
        self._children = children
        self._crun = crun
        self._send = send
        self._event = event
        self._ending = ending
        self._gate = gate
        self._channels: dict[int, GuestProcess] = {}

    def launch(
        self,
        process: GuestProcess,
        arguments: list[str],
        pid_file: str,
        described: Json,
        size: tuple[int, int],
        passed: list[str],
        finished: Callable[[AgentError | None], None],
        prepared: tuple[Prepared, str] | None = None,
    ) -> None:
        """Run crun with the streams of *process*, which *described* (an OCI process object) tells of, and *passed*
        (frames.WAYS) for its descriptors beyond stdio; or let the *prepared* one go on, with its config.json.

        crun leaves the process behind and its pid in *pid_file*.
        """
        container = process.container
        container.processes[process.channel] = process
        self._channels[process.channel] = process
        program = str((described.get("args") or [""])[0])
        process.filter = Filter(program, container.hooks)
        console: _Console | None = None
        child: list[int] = []
        if prepared is not None:
            self._take_pipes(process, prepared[0].pipes)
        elif described.get("terminal"):
            console = _Console(
                f"{container.bundle}/console-{process.channel}", size, plain=bool(described.get(names.PLAIN_NEWLINES))
            )
            arguments = [*arguments, f"--console-socket={console.path}"]
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            child = [null, null, null]
        else:
            child = self._pipes(process)
        if passed:
            arguments = [*arguments, f"--preserve-fds={len(passed)}"]
            child += [self._pass(process, index, way) for index, way in enumerate(passed)]

        def ended(status: int) -> None:
            if status == 0:
                status = self._take_over(process, pid_file, console)
            if console is not None:
                console.close()
            if status != 0:
                self.close(process)
                finished(AgentError(crun.as_runc_says(crun.error(container.bundle, arguments[0]), program)))
                return
            finished(None)
            self._children.adopt(process.pid, lambda status: self._ended(process, status))

        if prepared is not None:
            prepared[0].go_on(prepared[1], ended)
            return
        try:
            self._crun.run(container.bundle, [*arguments, container.crun_name], ended, child)
        finally:
            for fd in set(child):
                os.close(fd)

    def _take_over(self, process: GuestProcess, pid_file: str, console: _Console | None) -> int:
        """What crun has left behind becomes ours: its pid, its terminal. 0, or 1 with the reason in crun's log."""
        try:
            process.pid = int(files.read(pid_file))
            if process.filter is not None:
                process.filter.pid = process.pid
                if process.filter.runs():  # what has come is its own
                    for source in process.sources.values():
                        source.let_go()
            if console is not None:
                self._take_terminal(process, console.listener, console.size, plain=console.plain)
        except (OSError, ValueError, EOFError) as error:
            if process.pid:
                cgroups.kill(process.pid, signal.SIGKILL)
            files.write(f"{process.container.bundle}/crun.log", str(error), make=True)
            return 1
        return 0

    def launch_outside(self, process: GuestProcess, described: Json, size: tuple[int, int]) -> None:
        """Run a program of the guest itself, in no container, for `runvm debug shell`. Raises OSError."""
        argv = ["/bin/busybox", "setsid", *(str(word) for word in described["args"])]
        if described.get("terminal"):
            master, slave = os.openpty()
            os.set_inheritable(master, False)
            if described.get(names.PLAIN_NEWLINES):
                keep_newlines(master)
            self._own_terminal(process, master, size)
            child = [slave, slave, slave]
            argv.insert(2, "-c")  # the terminal becomes the controlling one
        else:
            child = self._pipes(process)
        process.container.processes[process.channel] = process
        self._channels[process.channel] = process
        try:
            process.pid = self._children.spawn(argv, lambda status: self._ended(process, status), child)
        finally:
            for fd in set(child):
                os.close(fd)

    def frame(self, frame: Frame) -> None:
        """A frame of a process's stream: input, credit, or word that nobody reads an output any more."""
        process = self._channels.get(frame.channel)
        if process is None:
            return
        if frame.kind in process.sinks:
            process.sinks[frame.kind].write(frame.payload)
        elif frame.kind == frames.CREDIT_KIND:
            stream, count = frames.decode_credit(frame)
            source = process.sources.get(stream)
            if source is not None:
                source.credit(count)
                if process.status is not None:
                    self._finish(process)
        elif not frame.payload:
            source = process.sources.get(frame.kind)
            if source is not None:
                source.close(silent=True)

    def resize(self, channel: int, rows: int, columns: int) -> None:
        """The terminal of *channel* has another size."""
        process = self._channels.get(channel)
        if process is not None and process.terminal >= 0:
            set_size(process.terminal, rows, columns)

    def attach_again(self) -> None:
        """The VM was restored: at the other end of each stream is a new shim, which has to hear what has ended."""
        for process in [process for process in self._channels.values() if process.reported]:
            self._leave_alone(process)
        for process in self._channels.values():
            for kind, sink in process.sinks.items():
                sink.change_sender()
                if not sink.open:
                    self._send(kind, process.channel, b"")
            for source in process.sources.values():
                source.credit(frames.WINDOW)
            if process.terminal >= 0:
                # the new terminal's size comes from the shim; that it is another terminal is told now
                with suppress(OSError):
                    os.killpg(os.tcgetpgrp(process.terminal), signal.SIGWINCH)
            else:
                for kind in {frames.STDOUT, frames.STDERR} - process.sources.keys():
                    self._send(kind, process.channel, b"")

    def _leave_alone(self, process: GuestProcess) -> None:
        """What others write that one has left its streams to goes nowhere from now on."""
        self._channels.pop(process.channel)
        process.container.processes.pop(process.channel, None)
        process.channel = 0
        for source in process.sources.values():
            source.discard()

    def close(self, process: GuestProcess) -> None:
        """Forget a process and its streams."""
        self._channels.pop(process.channel, None)
        process.container.processes.pop(process.channel, None)
        process.reported = True
        for sink in process.sinks.values():
            sink.close()
        for source in list(process.sources.values()):
            source.close(silent=True)
        if process.terminal >= 0:
            os.close(process.terminal)
            process.terminal = -1

    # --- streams

    def _pipes(self, process: GuestProcess) -> list[int]:
        made = pipes.make()
        self._take_pipes(process, made)
        return list(made.theirs)

    def _take_pipes(self, process: GuestProcess, made: Pipes) -> None:
        process.sinks[frames.STDIN] = Sink(self._loop, made.stdin, frames.STDIN, process.channel, self._send)
        self._source(process, frames.STDOUT, made.stdout)
        self._source(process, frames.STDERR, made.stderr)

    def _pass(self, process: GuestProcess, index: int, way: str) -> int:
        """The process's end of its descriptor 3 + *index*; ours goes on as streams."""
        if way == frames.BOTH:
            theirs, ours = (sock.detach() for sock in socket.socketpair())
            reader, writer = ours, os.dup(ours)
        elif way == frames.IN:
            theirs, writer = os.pipe2(os.O_CLOEXEC)
        else:
            reader, theirs = os.pipe2(os.O_CLOEXEC)
        if way != frames.OUT:
            os.set_blocking(writer, False)
            kind = frames.toward_guest(index)
            process.sinks[kind] = Sink(self._loop, writer, kind, process.channel, self._send, half=way == frames.BOTH)
        if way != frames.IN:
            os.set_blocking(reader, False)
            self._source(process, frames.toward_host(index), reader)
        return theirs

    def _source(self, process: GuestProcess, kind: int, fd: int) -> None:
        errors = frames.STDERR if process.terminal < 0 else frames.STDOUT
        process.sources[kind] = StreamSource(
            self._loop,
            fd,
            kind,
            process.channel,
            self._send,
            lambda: self._stream_ended(process, kind),
            process.filter if kind == errors else None,
            gate=self._gate,
        )

    def _stream_ended(self, process: GuestProcess, kind: int) -> None:
        process.sources.pop(kind, None)
        if process.status is not None:
            self._finish(process)

    def _take_terminal(
        self, process: GuestProcess, listener: socket.socket, size: tuple[int, int], *, plain: bool
    ) -> None:
        listener.settimeout(5)
        peer, _ = listener.accept()
        with peer:
            _, fds, _, _ = socket.recv_fds(peer, 4096, 1)
        if not fds:
            raise EOFError("no terminal on the console socket")
        self._own_terminal(process, fds[0], size, _plain(fds[0]) if plain else b"")

    def _own_terminal(self, process: GuestProcess, master: int, size: tuple[int, int], early: bytes = b"") -> None:
        """The *master* is ours; *early* is what has been read from it."""
        process.terminal = master
        if size[0] and size[1]:
            set_size(master, *size)
        os.set_blocking(master, False)
        process.sinks[frames.STDIN] = Sink(
            self._loop, os.dup(master), frames.STDIN, process.channel, self._send, keep=True
        )
        self._source(process, frames.STDOUT, os.dup(master))
        if early:
            process.sources[frames.STDOUT].pass_on(early)

    # --- the end

    def _ended(self, process: GuestProcess, status: int) -> None:
        process.status = status
        if not self._ends_all(process):
            for source in process.sources.values():
                source.due = source.waiting
            process.sinks[frames.STDIN].close()
        self._ending(process)
        self._finish(process)

    def _ends_all(self, process: GuestProcess) -> bool:
        """Whether nobody can write to its streams any more after its end: a container's others are killed then, and a
        terminal is hung up. Those that exec's process has left its pipes to go on."""
        return process is process.container.init or process.terminal >= 0

    def _finish(self, process: GuestProcess) -> None:
        """Report the end of a process once all that it has written is sent."""
        if process.status is None:
            return
        if process.reported:
            if not process.sources:
                self.close(process)
            return
        for source in list(process.sources.values()):
            source.drain()
        if any(source.blocked for source in process.sources.values()):
            if self._gate.closed:
                self._gate.wait(lambda: self._finish(process))
            return  # the reader is slow: credit brings us back here
        if process.sources and self._ends_all(process):
            self._loop.call_later(_STOP_WAIT, lambda: self._give_up(process))
            return
        self._report(process)

    def _give_up(self, process: GuestProcess) -> None:
        if not process.reported:
            for source in list(process.sources.values()):
                source.drain()
                if source.blocked:
                    self._finish(process)
                    return
                source.close()
            self._report(process)

    def drop_output(self, process: GuestProcess) -> bool:
        """SIGKILL for one that has ended, but whose reader is slow: it would have hung in write(2) before its end.
        False where that has been told."""
        if process.reported or process.status is None:
            return False
        process.status = int(signal.SIGKILL)
        for source in list(process.sources.values()):
            source.close()
        self._report(process)
        return True

    def _report(self, process: GuestProcess) -> None:
        if process.reported or process.status is None:
            return
        process.reported = True
        status = process.status
        number = (process.killed_by or os.WTERMSIG(status)) if os.WIFSIGNALED(status) else 0
        self._event(Exited(process.channel, 128 + number if number else os.WEXITSTATUS(status), number))
        if not process.sources:
            self.close(process)
