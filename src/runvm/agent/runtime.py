"""Containers in the guest: crun does the OCI work, the agent keeps their processes, streams and namespaces.

Called by agent.init for each request of the host. Everything that crun can do is left to crun; `start` writes to crun's
exec fifo itself, since one more crun costs 0.1 s under emulation.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any

from runvm.agent import network
from runvm.linux.loop import Loop
from runvm.linux.netns import in_namespace
from runvm.linux.process import namespace_name
from runvm.linux.terminal import set_size
from runvm.protocol import frames
from runvm.protocol.frames import Frame
from runvm.protocol.messages import Create, Exec, Exited, Json, OutOfMemory, Signal
from runvm.protocol.streams import Sink, Source

CRUN = "/usr/bin/crun"
_STATE = "/run/crun"
_BUNDLES = "/run/runvm/bundles"
_CGROUP = "/sys/fs/cgroup"
_STOP_WAIT = 0.2
"""Seconds that output which others still hold open is waited for once a process has ended."""


class AgentError(Exception):
    """A request can't be carried out: the text goes to the user."""


class Process:
    """One process of a container with its streams: its init (`crun create`), or a further one (`crun exec`)."""

    def __init__(self, container: Container, channel: int) -> None:
        self.container = container
        self.channel = channel
        self.pid = 0
        self.status: int | None = None
        self.stdin: Sink | None = None
        self.sources: dict[int, Source] = {}
        self.terminal = -1
        self.reported = False


class Container:
    """A container of this VM."""

    def __init__(self, name: str, bundle: str, network_name: str) -> None:
        self.name = name
        self.bundle = bundle
        self.network = network_name
        self.init: Process | None = None
        self.processes: dict[int, Process] = {}
        self.cgroup = f"{_CGROUP}/{name}"
        self.oom_kills = 0


class Runtime:
    """All containers of this VM. *send* queues a frame to the host, *event* a message."""

    def __init__(self, loop: Loop, send: Callable[[int, int, bytes], None], event: Callable[[Any], None]) -> None:
        self._loop = loop
        self._send = send
        self._event = event
        self.containers: dict[str, Container] = {}
        self._channels: dict[int, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._unclaimed: dict[int, int] = {}
        self._helpers: dict[int, Callable[[int], None]] = {}

    # --- requests

    def create(self, request: Create, done: Callable[[Json | AgentError], None]) -> None:
        """`crun create`; *done* gets {"pid"} or the error once crun has answered."""
        bundle = f"{_BUNDLES}/{request.container}"
        os.makedirs(bundle, mode=0o700)
        container = Container(request.container, bundle, request.network)
        self.containers[request.container] = container
        spec = request.spec
        for namespace in spec["linux"]["namespaces"]:
            joined = request.namespaces.get(namespace["type"])
            if joined is not None:
                namespace["path"] = self._namespace_path(joined, namespace["type"])
            elif namespace["type"] == "network" and request.network:
                namespace["path"] = network.path(request.network)
        with open(f"{bundle}/config.json", "w") as file:
            json.dump(spec, file)
        process = Process(container, request.channel)
        container.init = process
        options = ["create", f"--bundle={bundle}", f"--pid-file={bundle}/pid", "--no-new-keyring"]

        def finished(error: AgentError | None) -> None:
            if error is not None:
                self.remove(request.container)
                done(error)
            else:
                done({"pid": process.pid})

        self._crun(process, options, f"{bundle}/pid", spec["process"], (request.rows, request.columns), finished)

    def start(self, name: str, done: Callable[[Json | AgentError], None]) -> None:
        """Let the container's init go on to its program: what `crun start` does, without another crun."""
        container = self._container(name)
        fifo = f"{_STATE}/{name}/exec.fifo"
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise AgentError(f"start container {name}: its init has gone ({error.strerror})") from None
        try:
            os.write(fd, b"\0")
            os.unlink(fifo)
        finally:
            os.close(fd)
        self._watch_oom(container)
        done({})

    def exec(self, request: Exec, done: Callable[[Json | AgentError], None]) -> None:
        """`crun exec`; *done* gets {"pid"} or the error."""
        container = self._container(request.container)
        process = Process(container, request.channel)
        base = f"{container.bundle}/exec-{request.channel}"
        with open(f"{base}.json", "w") as file:
            json.dump(request.process, file)
        options = ["exec", "--detach", f"--process={base}.json", f"--pid-file={base}.pid"]
        if request.cgroup:
            options.append(f"--cgroup={request.cgroup}")

        def finished(error: AgentError | None) -> None:
            for suffix in ("json", "pid"):
                _unlink(f"{base}.{suffix}")
            if error is not None:
                done(error)
            else:
                done({"pid": process.pid})

        self._crun(process, options, f"{base}.pid", request.process, (request.rows, request.columns), finished)

    def signal(self, request: Signal) -> Json:
        """A signal to one process, or to every one in the container's cgroup."""
        container = self._container(request.container)
        if request.every:
            for pid in _cgroup_pids(container.cgroup):
                _kill(pid, request.number)
            return {}
        process = container.processes.get(request.channel)
        if process is None or process.status is not None or not process.pid:
            raise AgentError("process already finished")
        _kill(process.pid, request.number)
        return {}

    def freeze(self, name: str, frozen: bool) -> Json:
        """Pause or resume by the cgroup v2 freezer (kernel's cgroup-v2.rst, cgroup.freeze)."""
        container = self._container(name)
        _write(f"{container.cgroup}/cgroup.freeze", "1" if frozen else "0")
        return {}

    def update(self, name: str, resources: Json, done: Callable[[Json | AgentError], None]) -> None:
        """`crun update`."""
        container = self._container(name)
        path = f"{container.bundle}/resources.json"
        with open(path, "w") as file:
            json.dump(resources, file)

        def finished(status: int) -> None:
            done({} if status == 0 else AgentError(self._crun_error(container.bundle, "update")))

        self._spawn(
            [CRUN, f"--root={_STATE}", *_log(container.bundle), "update", f"--resources={path}", name], finished
        )

    def stats(self, name: str) -> Json:
        """The files of the container's cgroup, as text."""
        container = self._container(name)
        result = {}
        for file in sorted(os.listdir(container.cgroup)):
            if file.startswith(("cpu.stat", "memory.", "pids.", "io.stat", "cpu.max", "cpu.pressure", "hugetlb.")):
                try:
                    with open(f"{container.cgroup}/{file}") as stream:
                        result[file] = stream.read(8192)
                except OSError:
                    continue  # a file that can't be read, like memory.reclaim
        result["cgroup.procs"] = " ".join(str(pid) for pid in _cgroup_pids(container.cgroup)[:1024])
        if container.network:
            result["net/dev"] = _counters(container.network)
        return result

    def remove(self, name: str) -> Json:
        """Forget a container and everything of it: processes, crun's state, cgroup, bundle."""
        container = self.containers.pop(name, None)
        if container is None:
            return {}
        for process in list(container.processes.values()):
            self._close(process)
        for pid in _cgroup_pids(container.cgroup):
            _kill(pid, signal.SIGKILL)
        self._spawn([CRUN, f"--root={_STATE}", "delete", "--force", name], lambda status: None)
        _remove_tree(container.bundle)
        return {}

    def stream(self, frame: Frame) -> None:
        """A frame of a process's stream: input, credit, or word that nobody reads an output any more."""
        process = self._channels.get(frame.channel)
        if process is None:
            return
        if frame.kind == frames.STDIN:
            if process.stdin is not None:
                process.stdin.write(frame.payload)
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

    def reap(self) -> None:
        """Collect every child that has ended: crun's own runs, containers' processes, orphans of the VM."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            helper = self._helpers.pop(pid, None)
            if helper is not None:
                helper(status)
                continue
            process = self._by_pid.pop(pid, None)
            if process is not None:
                process.status = status
                self._finish(process)
            elif self._helpers:
                # crun may end after the process that it leaves behind: keep the status until its pid file is read
                self._unclaimed[pid] = status
            else:
                self._unclaimed.clear()

    # --- inside

    def _container(self, name: str) -> Container:
        try:
            return self.containers[name]
        except KeyError:
            raise AgentError(f"no container {name} in this virtual machine") from None

    def _namespace_path(self, container: str, kind: str) -> str:
        owner = self._container(container)
        if kind == "network" and owner.network:
            return network.path(owner.network)
        if owner.init is None or not owner.init.pid:
            raise AgentError(f"container {container}, whose {kind} namespace is to be joined, isn't running")
        return f"/proc/{owner.init.pid}/ns/{namespace_name(kind)}"

    def _crun(
        self,
        process: Process,
        options: list[str],
        pid_file: str,
        described: Json,
        size: tuple[int, int],
        finished: Callable[[AgentError | None], None],
    ) -> None:
        """Run crun with the streams of *process*, which *described* (an OCI process object) tells of.

        crun leaves the process behind and its pid in *pid_file*.
        """
        container = process.container
        program = str((described.get("args") or [""])[0])
        container.processes[process.channel] = process
        self._channels[process.channel] = process
        listener: socket.socket | None = None
        if described.get("terminal"):
            path = f"{container.bundle}/console-{process.channel}"
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen(1)
            options = [*options, f"--console-socket={path}"]
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            child = [null, null, null]
        else:
            stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC)
            stdout_read, stdout_write = os.pipe2(os.O_CLOEXEC)
            stderr_read, stderr_write = os.pipe2(os.O_CLOEXEC)
            child = [stdin_read, stdout_write, stderr_write]
            for fd in (stdin_write, stdout_read, stderr_read):
                os.set_blocking(fd, False)
            process.stdin = Sink(self._loop, stdin_write, frames.STDIN, process.channel, self._send)
            self._source(process, frames.STDOUT, stdout_read)
            self._source(process, frames.STDERR, stderr_read)

        def ended(status: int) -> None:
            if status == 0:
                try:
                    with open(pid_file) as file:
                        process.pid = int(file.read())
                    if listener is not None:
                        self._take_terminal(process, listener, size)
                except (OSError, ValueError, EOFError) as error:
                    status = 1
                    _write(f"{container.bundle}/crun.log", json.dumps({"msg": f"crun left no process: {error}"}))
            if listener is not None:
                listener.close()
                _unlink(f"{container.bundle}/console-{process.channel}")
            if status != 0:
                self._close(process)
                finished(AgentError(as_runc_says(self._crun_error(container.bundle, options[0]), program)))
                return
            finished(None)
            early = self._unclaimed.pop(process.pid, None)
            if early is None:
                self._by_pid[process.pid] = process
            else:
                process.status = early
                self._finish(process)

        argv = [CRUN, f"--root={_STATE}", *_log(container.bundle), *options, container.name]
        self._spawn(argv, ended, child)
        for fd in set(child):
            os.close(fd)

    def _spawn(self, argv: list[str], ended: Callable[[int], None], stdio: list[int] | None = None) -> None:
        """Start a helper with the given descriptors as 0, 1, 2; *ended(status)* is called when it has been reaped."""
        actions: list[tuple[Any, ...]] = []
        if stdio is None:
            actions.extend((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3))
        else:
            # first out of the way of 0, 1 and 2, which they may be themselves
            actions.extend((os.POSIX_SPAWN_DUP2, fd, 200 + number) for number, fd in enumerate(stdio))
            actions.extend((os.POSIX_SPAWN_DUP2, 200 + number, number) for number in range(3))
            actions.extend((os.POSIX_SPAWN_CLOSE, 200 + number) for number in range(3))
        pid = os.posix_spawn(
            argv[0],
            argv,
            {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=actions,
            setsigdef=[signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT],
        )
        self._helpers[pid] = ended

    def _crun_error(self, bundle: str, what: str) -> str:
        """crun's last words from its log, which is emptied."""
        message = ""
        try:
            with open(f"{bundle}/crun.log", errors="replace") as file:
                for line in file.read(1 << 16).splitlines():
                    try:
                        message = str(json.loads(line).get("msg", "")) or message
                    except (ValueError, AttributeError):
                        message = line or message
            os.truncate(f"{bundle}/crun.log", 0)
        except OSError:
            pass
        return message or f"crun {what} failed in the guest"

    def _source(self, process: Process, kind: int, fd: int) -> None:
        process.sources[kind] = Source(
            self._loop, fd, kind, process.channel, self._send, lambda: self._stream_ended(process, kind)
        )

    def _stream_ended(self, process: Process, kind: int) -> None:
        process.sources.pop(kind, None)
        if process.status is not None:
            self._finish(process)

    def _take_terminal(self, process: Process, listener: socket.socket, size: tuple[int, int]) -> None:
        listener.settimeout(5)
        peer, _ = listener.accept()
        with peer:
            _, fds, _, _ = socket.recv_fds(peer, 4096, 1)
        if not fds:
            raise EOFError("no terminal on the console socket")
        master = fds[0]
        process.terminal = master
        if size[0] and size[1]:
            set_size(master, *size)
        os.set_blocking(master, False)
        process.stdin = Sink(self._loop, os.dup(master), frames.STDIN, process.channel, self._send, keep=True)
        self._source(process, frames.STDOUT, os.dup(master))

    def _finish(self, process: Process) -> None:
        """Report the end of a process once its output is sent; what others still hold open is waited for a moment
        only."""
        if process.reported or process.status is None:
            return
        for source in list(process.sources.values()):
            source.drain()
        if process.sources:
            if any(source.blocked for source in process.sources.values()):
                return  # the reader is slow: credit brings us back here
            self._loop.call_later(_STOP_WAIT, lambda: self._give_up(process))
            return
        self._report(process)

    def _give_up(self, process: Process) -> None:
        if not process.reported:
            for source in list(process.sources.values()):
                source.drain()
                if source.blocked:
                    return
                source.close()
            self._report(process)

    def _report(self, process: Process) -> None:
        if process.reported or process.status is None:
            return
        process.reported = True
        container = process.container
        if process is container.init:
            self._note_oom(container)
            # a shared PID namespace leaves the others of the cgroup alive; the container has ended all the same
            for pid in _cgroup_pids(container.cgroup):
                _kill(pid, signal.SIGKILL)
        status = process.status
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        self._event(Exited(process.channel, 128 + number if number else os.WEXITSTATUS(status), number))
        self._close(process)

    def _close(self, process: Process) -> None:
        self._channels.pop(process.channel, None)
        process.container.processes.pop(process.channel, None)
        self._by_pid.pop(process.pid, None)
        process.reported = True
        if process.stdin is not None:
            process.stdin.close()
        for source in list(process.sources.values()):
            source.close(silent=True)
        if process.terminal >= 0:
            os.close(process.terminal)
            process.terminal = -1

    def _watch_oom(self, container: Container) -> None:
        """memory.events tells of kills by POLLPRI (kernel's cgroup-v2.rst)."""
        path = f"{container.cgroup}/memory.events"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return

        def changed(events: int) -> None:
            if container.name not in self.containers:
                self._loop.forget(fd)
                os.close(fd)
                return
            self._note_oom(container)
            try:
                os.pread(fd, 4096, 0)
            except OSError:
                self._loop.forget(fd)
                os.close(fd)

        os.pread(fd, 4096, 0)
        self._loop.watch(fd, select.POLLPRI, changed)

    def _note_oom(self, container: Container) -> None:
        kills = _events(f"{container.cgroup}/memory.events").get("oom_kill", 0)
        if kills > container.oom_kills:
            container.oom_kills = kills
            self._event(OutOfMemory(container.name))


def as_runc_says(message: str, program: str) -> str:
    """crun's error in the words that docker turns into exit codes 126 and 127 (its cli's run.go), which are runc's
    and Go's."""
    start = "unable to start container process: exec: "
    if "executable file" in message and "$PATH" in message:
        return f'{start}"{program}": executable file not found in $PATH'
    if "executable" in message and "o such file" in message:
        return f'{start}"{program}": stat {program}: no such file or directory'
    if "executable" in message and ("not permitted" in message or "ermission denied" in message):
        return f'{start}"{program}": permission denied'
    for text in ("No such file or directory", "Permission denied", "Operation not permitted", "Not a directory"):
        message = message.replace(text, text.lower())
    return message


def _log(bundle: str) -> list[str]:
    return [f"--log={bundle}/crun.log", "--log-format=json", "--cgroup-manager=cgroupfs"]


def _events(path: str) -> dict[str, int]:
    try:
        with open(path) as file:
            return {key: int(value) for key, value in (line.split() for line in file)}
    except (OSError, ValueError):
        return {}


def _counters(name: str) -> str:
    """/proc/net/dev of a network namespace."""
    fd = network.open_namespace(name)
    try:

        def read() -> str:
            with open("/proc/thread-self/net/dev") as file:
                return file.read(16384)

        return in_namespace(fd, read)
    finally:
        os.close(fd)


def _cgroup_pids(cgroup: str) -> list[int]:
    """Processes of a cgroup and of those below it."""
    found: list[int] = []
    for directory, _, _ in os.walk(cgroup):
        try:
            with open(f"{directory}/cgroup.procs") as file:
                found += [int(line) for line in file]
        except OSError:
            continue
    return found


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _remove_tree(path: str) -> None:
    for directory, names, files in os.walk(path, topdown=False):
        for name in files:
            _unlink(f"{directory}/{name}")
        for name in names:
            os.rmdir(f"{directory}/{name}")
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
