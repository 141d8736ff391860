"""PID 1 of the guest: makes the system that crun needs, waits to be initialized by the host, then serves its requests
until the end.

What runs before the first `Initialize` is in the memory template that later VMs start from, so nothing there may have
an identity: no host name, no random state that outlives the reseeding, no clock, no mounts of a share.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from runvm.agent import cgroups, identity, processors
from runvm.agent.checkpoints import GuestCheckpoints
from runvm.agent.connections import Connections
from runvm.agent.errors import AgentError
from runvm.agent.memory import Memory
from runvm.agent.networks import GuestNetworks
from runvm.agent.own_servers import GuestServers
from runvm.agent.replay import MODULE, Replay
from runvm.agent.runtime import Runtime
from runvm.agent.watches import Watches
from runvm.errors import RunvmError
from runvm.linux import clock, files, syscalls
from runvm.linux.loop import IN, Loop
from runvm.protocol import frames, messages, version
from runvm.protocol.connection import Connection
from runvm.protocol.frames import Frame
from runvm.protocol.interfaces import NetworkError
from runvm.protocol.messages import (
    AddSocket,
    Changed,
    Clock,
    Connect,
    ConnectServer,
    Create,
    Dialled,
    Done,
    DropSocket,
    Exec,
    Failed,
    FindFile,
    FindServer,
    Freeze,
    Hello,
    Initialize,
    Quiesce,
    Remove,
    RemoveNetwork,
    Resize,
    Restored,
    SetNetwork,
    Signal,
    Start,
    Stats,
    Unquiesce,
    Update,
    UseCpus,
    UseMemory,
)
from runvm.protocol.names import AGENT_LINE, AGENT_PORT, HUGE_PAGES, MODULES, SHARE, TEMPLATE_WORD

_MODULES = (
    "virtio_pci", "virtio_console", "virtio_net", "virtiofs", "overlay", "virtio_balloon", "virtio_mem", "virtio_rng",
    "ip_tables", "ip6_tables",
)  # fmt: skip
_SHARE_SECONDS = 160
"""Longer than the host waits for the guest, unless that is slow for the host's sake."""
_CREATE_SECONDS = 0.25
"""How long the Create that follows Initialize may take to come."""
_FILE_SYSTEMS = (
    ("proc", "/proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, ""),
    ("sysfs", "/sys", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, ""),
    ("devtmpfs", "/dev", syscalls.MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"),
    ("tmpfs", "/dev/shm", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=1777"),
    ("mqueue", "/dev/mqueue", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, ""),
    ("tmpfs", "/run", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755"),
    ("tmpfs", "/tmp", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, ""),
)
_NR_OPEN = "fs/nr_open"
_KEPT_FREE = 16 << 20
"""Bytes that the kernel may need while all the other free memory is taken for a moment."""
_RESERVE = "/proc/sys/vm/min_free_kbytes"


Answered = Callable[[messages.Json | AgentError], None]
Handler = Callable[[Any, Answered], messages.Json | None]


class Agent:
    """Serves one host connection."""

    def __init__(self, port: int) -> None:
        self.loop = Loop(on_error=_report)
        self.connection = Connection(self.loop, port, on_frame=self._frame, on_close=self._closed)
        self.networks = GuestNetworks(self.loop, self.connection.send, _say)
        self.runtime = Runtime(self.loop, self.connection.send, self._event, self.connection.gate)
        self.memory = Memory(self.loop, self._event)
        self.connections = Connections(self.loop, self.connection.send, self.connection.gate)
        self.watches = Watches(self.loop, self._event)
        self.replay = Replay(self.watches)
        self.own_servers = GuestServers(self.loop, self.runtime.children, self.connections.adopt)
        self.checkpoints = GuestCheckpoints(
            self.loop, port, self.runtime, self.networks, self.connections, self.watches
        )
        self._initializing: tuple[str, Answered] | None = None
        self._handlers = self._table()
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.loop.watch(wake_read, IN, lambda events: self._child(wake_read))

    def run(self) -> None:
        """Say hello, then serve."""
        gc.collect()
        gc.freeze()  # what is here now never becomes garbage: leave its pages alone
        messages.prepare()
        self.runtime.limit_files(int(files.read(f"/proc/sys/{_NR_OPEN}")))
        if os.path.exists(MODULE):
            with suppress(OSError):  # a kernel without probes, as User Mode Linux
                self.watches.set_up()
        if TEMPLATE_WORD in files.read("/proc/cmdline").split():
            self.runtime.prepare()
            _clear_memory()
        self._event(Hello(version.own().decode()))
        self.loop.run()

    def _child(self, fd: int) -> None:
        os.read(fd, 4096)
        self.runtime.children.reap()

    def _closed(self, reason: str) -> None:
        # the supervisor is gone, and with it the virtual machine's purpose
        _say(f"the host has gone: {reason}")
        syscalls.reboot(syscalls.RB_POWER_OFF)

    def _event(self, message: Any) -> None:
        self._message(0, message)

    def _message(self, number: int, message: Any) -> None:
        self.connection.send(frames.MESSAGE, 0, messages.encode(message, number))

    def _frame(self, frame: Frame) -> None:
        if frame.kind == frames.DNS:
            self.networks.answer(frame)
            return
        if frame.kind != frames.MESSAGE:
            if not self.connections.frame(frame) and not self.runtime.host_sockets.frame(frame):
                self.runtime.processes.frame(frame)
            return
        try:
            number, request = messages.decode(frame.payload)
        except messages.MessageError as error:
            self._message(error.number, Failed(f"the guest's agent: {error}"))
            return

        def done(result: messages.Json | AgentError) -> None:
            self._message(number, Failed(str(result)) if isinstance(result, AgentError) else Done(result))

        try:
            result = self._serve(request, done)
        except (AgentError, OSError, NetworkError, RunvmError) as error:
            done(AgentError(str(error) or repr(error)))
            return
        except Exception as error:  # one request, whatever is wrong with it, isn't the end of the other containers
            _report(error)
            done(AgentError(f"{type(request).__name__}: {type(error).__name__}: {error}"))
            return
        if result is not None:
            done(result)

    def _serve(self, request: Any, done: Answered) -> messages.Json | None:
        """Carry out one request; None where *done* is called later or no reply is due."""
        handler = self._handlers.get(type(request))
        if handler is None:
            raise AgentError(f"the guest's agent doesn't serve {type(request).__name__}")
        return handler(request, done)

    def _table(self) -> dict[type, Handler]:
        """What serves each type of message."""
        runtime, networks = self.runtime, self.networks

        def at_once(serve: Callable[[Any], messages.Json | None]) -> Handler:
            return lambda request, done: serve(request) or {}

        return {
            Initialize: self._initialize,
            Create: self._create,
            Start: lambda request, done: runtime.start(request.container, done),
            Exec: runtime.exec,
            Signal: at_once(runtime.signal),
            Freeze: runtime.freeze,
            Update: lambda request, done: runtime.update(request.container, request.resources, done),
            UseMemory: at_once(self.memory.use),
            UseCpus: lambda request, done: processors.use(self.loop, request.vcpus, done),
            Clock: at_once(_clock),
            Stats: at_once(lambda request: runtime.stats(request.container)),
            FindFile: at_once(lambda request: {"there": runtime.has_file(request.container, request.path)}),
            Remove: self._remove,
            SetNetwork: at_once(lambda request: _noted({}, networks.set(request.network, request.interfaces))),
            RemoveNetwork: at_once(lambda request: networks.remove(request.network)),
            **dict.fromkeys((Quiesce, Unquiesce, Restored), at_once(self.checkpoints.serve)),
            Connect: self.connections.open,
            Dialled: lambda answer, done: runtime.host_sockets.dialled(answer),
            AddSocket: at_once(runtime.add_socket),
            DropSocket: at_once(lambda request: runtime.host_sockets.drop(request.container, request.socket)),
            FindServer: at_once(lambda request: self.own_servers.find(runtime.place(request))),
            ConnectServer: lambda request, done: self.own_servers.connect(request, runtime.place(request), done),
            Changed: at_once(self.replay.changed),
            Resize: lambda event, done: runtime.processes.resize(event.channel, event.rows, event.columns),
        }

    def _create(self, request: Create, done: Answered) -> None:
        notes = self.networks.set(request.network, request.interfaces)
        self._mount_share()
        self.runtime.create(
            request, lambda result: done(result if isinstance(result, AgentError) else _noted(result, notes))
        )

    def _remove(self, request: Remove, done: Answered) -> None:
        self.runtime.remove(request.container, done)
        self.watches.look_again()

    def _initialize(self, request: Initialize, done: Answered) -> None:
        """Become this VM and no other: random state, clock, machine-id; then the share, which was plugged in while
        paused. As the kernel may still be busy with that, a Create that has come already has its network set up first.
        """
        identity.become(request.clock_ns, bytes.fromhex(request.entropy))
        for name, value in request.sysctls.items():
            try:
                files.write(name if name.startswith("/") else f"/proc/sys/{name}", str(value))
            except OSError as error:
                _say(f"sysctl {name}: {error.strerror}")
        if _NR_OPEN in request.sysctls:
            self.runtime.limit_files(int(files.read(f"/proc/sys/{_NR_OPEN}")))
        self._initializing = (request.share, done)
        self.loop.call_later(_CREATE_SECONDS, self._finish_initializing)

    def _finish_initializing(self) -> None:
        with suppress(AgentError, OSError):  # the answer to Initialize tells
            self._mount_share()

    def _mount_share(self) -> None:
        """The rest of an Initialize, if there is one. Raises AgentError or OSError, and answers it with that."""
        if self._initializing is None:
            return
        (share, done), self._initializing = self._initializing, None
        try:
            if share:
                _mount(share)
        except (AgentError, OSError) as error:
            done(AgentError(str(error)))
            raise
        done({})


def _clock(request: Clock) -> messages.Json:
    """Tell what the clock shows, having moved it."""
    if request.by_ns:
        clock.move(request.by_ns)
    return {"clock_ns": time.time_ns()}


def _noted(result: messages.Json, notes: list[str]) -> messages.Json:
    """The *result* of a request, and what the host's log should have of it."""
    return {**result, "notes": notes} if notes else result


def _raise_limits() -> None:
    """All the hard limits but that of files, which a sysctl bounds: a container's are the host's, and crun in a user
    namespace can only lower what it inherits from here."""
    kinds = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    for number in kinds - {resource.RLIMIT_NOFILE}:
        resource.setrlimit(number, (resource.getrlimit(number)[0], resource.RLIM_INFINITY))


def _mount(tag: str) -> None:
    """Mount the virtiofs share once its device has been plugged in, and put its module tree where modprobe looks."""
    deadline = time.monotonic() + _SHARE_SECONDS
    while True:
        try:
            syscalls.mount(tag, SHARE, "virtiofs")
            break
        except OSError as error:
            # EINVAL: no device of that tag (kernel's virtio_fs_get_tree), or not yet
            if error.errno != errno.EINVAL:
                raise
            if time.monotonic() > deadline:
                raise AgentError(f"the virtiofs device didn't appear in the guest within {_SHARE_SECONDS} s") from None
        time.sleep(0.002)
    modules = f"{SHARE}/{MODULES}"
    if os.path.isdir(modules):
        syscalls.mount(modules, f"/lib/modules/{os.uname().release}", "", syscalls.MS_BIND)


def _say(text: str) -> None:
    """A line on the VM's console, which the supervisor keeps for error messages and `runvm debug`."""
    try:
        files.write("/dev/kmsg", f"<3>runvm agent: {text}\n")
    except OSError:
        pass


def _report(error: BaseException) -> None:
    """A fault of ours in a request or in one of the loop's callbacks: told, and the VM goes on."""
    import traceback

    for line in "".join(traceback.format_exception(error)).splitlines():
        _say(line)


def _set_up() -> None:
    """The file systems, the control groups, the modules."""
    # pivot_root(2), which crun does, refuses the kernel's first root: lay a bind of it over itself
    syscalls.mount("/", "/mnt", "", syscalls.MS_BIND | syscalls.MS_REC)
    os.chdir("/mnt")
    syscalls.mount("/mnt", "/", "", syscalls.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    for fstype, target, flags, data in _FILE_SYSTEMS:
        os.makedirs(target, exist_ok=True)
        syscalls.mount(fstype, target, fstype, flags, data)
    for link, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        if not os.path.lexists(f"/dev/{link}"):
            os.symlink(target, f"/dev/{link}")
    os.mkdir(cgroups.ALL)
    for controller in files.read(f"{cgroups.ROOT}/cgroup.controllers").split():
        try:
            for group in (cgroups.ROOT, cgroups.ALL):
                files.write(f"{group}/cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            _say(f"controller {controller}: {error.strerror}")
    # a page fault is dear in a virtual machine: huge pages are used, whatever the setting for all sizes, which becomes
    # the host's, says to those who ask; unless that is never (kernel's transhuge.rst)
    with suppress(OSError):  # Linux before 6.8
        files.write(HUGE_PAGES, "always")
    # a program may reserve as much as it likes: there is more memory than the guest knows of
    files.write("/proc/sys/vm/overcommit_memory", "1")
    # nor is free memory brought together ahead of need, for which the kernel looks twice a second
    with suppress(OSError):  # User Mode Linux has no huge pages to do it for
        files.write("/proc/sys/vm/compaction_proactiveness", "0")
    if os.path.isdir(f"/lib/modules/{os.uname().release}"):  # else all is built in
        pid = os.posix_spawn("/sbin/modprobe", ["modprobe", "-a", *_MODULES], {"PATH": "/sbin"})
        os.waitpid(pid, 0)
    os.makedirs("/run/runvm", mode=0o700, exist_ok=True)
    os.makedirs("/run/crun", mode=0o700, exist_ok=True)
    os.makedirs(SHARE, exist_ok=True)
    _raise_limits()


def _clear_memory() -> None:
    """Make what the boot has left behind in free memory zeros, which a template needn't hold: a third of it.

    The kernel's reserve, which it makes a twentieth of the memory for the sake of huge pages, is small meanwhile:
    to ask for what is in it panics the kernel, since there is nobody to kill but this process.
    """
    lines = files.read("/proc/meminfo").splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemFree:")) << 10
    reserve = files.read(_RESERVE)
    files.write(_RESERVE, "2048")
    try:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        mmap.mmap(-1, free - _KEPT_FREE, flags=private).close()
    finally:
        files.write(_RESERVE, reserve)


def _open_port() -> int:
    """The line to the supervisor: the terminal that the kernel's command line names, else the virtio-serial port
    (kernel's virtio_console: /sys/class/virtio-ports/*/name)."""
    for word in files.read("/proc/cmdline").split():
        if word.startswith(AGENT_LINE):
            return _open_line(word.removeprefix(AGENT_LINE))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            ports = os.listdir("/sys/class/virtio-ports")
        except FileNotFoundError:
            ports = []
        for port in ports:
            if files.read(f"/sys/class/virtio-ports/{port}/name").strip() == AGENT_PORT:
                return os.open(f"/dev/{port}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.01)
    raise AgentError(f"no virtio-serial port named {AGENT_PORT}")


def _open_line(path: str) -> int:
    """A serial line as a channel for bytes as they are."""
    import tty

    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(fd)
    return fd


def main() -> None:
    """Run as /init; never returns while the VM is to live."""
    try:
        _set_up()
        Agent(_open_port()).run()
    except BaseException as error:
        _report(error)
        sys.stdout.flush()
        time.sleep(0.2)
        syscalls.reboot(syscalls.RB_POWER_OFF)
