"""Containers in the guest: what the host asks for, carried out by crun, by signals, by the control group.

Called by agent.init for each request of the host. Everything that crun can do is left to crun; `start` writes to crun's
exec fifo itself, since one more crun costs 0.1 s under emulation.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from runvm.agent import cgroups, crun, network, networks, prepared, submounts, sysctls
from runvm.agent.children import Children
from runvm.agent.crun import Crun
from runvm.agent.crun_output import Hooks
from runvm.agent.errors import AgentError
from runvm.agent.host_sockets import HostSocketRelays
from runvm.agent.notify import Notify
from runvm.agent.prepared import Prepared
from runvm.agent.processes import Container, GuestProcess, Processes
from runvm.agent.socket_mounts import SocketPlace
from runvm.errors import NOT_RUNNING
from runvm.linux import files, handles, seccomp_filter, syscalls
from runvm.linux.loop import Loop
from runvm.linux.netns import in_namespace
from runvm.linux.process import ends_waiting, namespace_name
from runvm.protocol.gate import Gate
from runvm.protocol.messages import (
    AddSocket,
    ConnectServer,
    Create,
    Exec,
    FindServer,
    Freeze,
    Json,
    Notified,
    OutOfMemory,
    Signal,
)
from runvm.protocol.names import SHARE

_BUNDLES = "/run/runvm/bundles"
_FREEZE_SECONDS = 10.0
"""How long a process in the middle of a system call may hold up a pause."""
_LOOK_SECONDS = 0.005


class Runtime:
    """All containers of this VM. *send* queues a frame to the host, *event* a message; streams wait at *gate*."""

    def __init__(
        self, loop: Loop, send: Callable[[int, int, bytes], None], event: Callable[[Any], None], gate: Gate
    ) -> None:
        self._loop = loop
        self._event = event
        self.children = Children(loop)
        self._crun = Crun(self.children)
        self.processes = Processes(loop, self.children, self._crun, send, event, self._ending, gate)
        self.host_sockets = HostSocketRelays(loop, send, event, gate)
        self.containers: dict[str, Container] = {}
        self._prepared: Prepared | None = None

    def prepare(self) -> None:
        """Have the first container half made, before a template is taken. Raises OSError."""
        self._prepared = Prepared(self._crun, f"{_BUNDLES}/{prepared.NAME}")
        self._prepared.settle()

    def limit_files(self, limit: int) -> None:
        """The hard limit of open files, for what will be a container's first process."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[0], limit))
        if self._prepared is not None:
            self._prepared.limit_files(limit)

    def create(self, request: Create, done: Callable[[Json | AgentError], None]) -> None:
        """`crun create`; *done* gets {"pid"} or the error once crun has answered."""
        bundle, crun_name, ready = self._place(request)
        container = Container(request.container, crun_name, bundle, request.network)
        self.containers[request.container] = container
        spec = request.spec
        for namespace in spec["linux"]["namespaces"]:
            joined = request.namespaces.get(namespace["type"])
            if joined is not None:
                namespace["path"] = self._namespace_path(joined, namespace["type"])
            elif namespace["type"] == "network" and request.network:
                namespace["path"] = network.path(networks.name(request.network))
        if request.network:
            netns = network.open_namespace(networks.name(request.network))
            try:
                sysctls.write_networks(spec, netns)
            finally:
                os.close(netns)
        if request.notify:
            container.notify = Notify(
                self._loop, container.name, lambda text: self._event(Notified(container.name, text))
            )
        self.host_sockets.listen(container.name, request.sockets)
        spec["linux"]["cgroupsPath"] = container.cgroup.removeprefix(cgroups.ROOT)
        container.share, container.mounts = os.path.dirname(spec["root"]["path"]), _mounted(spec)
        container.submounts = submounts.hold(spec, SHARE)
        container.cpu = cgroups.hold_back(spec["linux"].get("resources", {}))
        container.hooks = Hooks(spec, bundle)
        seccomp_filter.annotate(spec)
        config = json.dumps(spec)
        if ready is None:
            files.write(f"{bundle}/config.json", config, make=True)
        process = GuestProcess(container, request.channel)
        container.init = process

        def finished(error: AgentError | None) -> None:
            if error is not None:
                self.remove(request.container, lambda nothing: done(error))
            else:
                done({"pid": process.pid})

        size = (request.rows, request.columns)
        self.processes.launch(
            process,
            self._crun.create_options(bundle),
            f"{bundle}/pid",
            spec["process"],
            size,
            request.passed,
            finished,
            (ready, config) if ready is not None else None,
        )

    def start(self, name: str, done: Callable[[Json | AgentError], None]) -> None:
        """Let the container's init go on to its program: what `crun start` does, without another crun. One that has
        gone on is no error: the command that asked for it may have been killed before it wrote that down."""
        container = self._container(name)
        fifo = f"{crun.STATE}/{container.crun_name}/exec.fifo"
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            if container.init is None or container.init.status is not None:
                raise AgentError(f"start container {name}: its init has gone") from None
            done({})
            return
        except OSError as error:
            raise AgentError(f"start container {name}: its init has gone ({error.strerror})") from None
        if container.hooks is not None and container.init is not None:
            container.hooks.look(container.init.pid)
        _refresh(container)
        try:
            _limit(container)
            os.write(fd, b"\0")
            container.started = True
            os.unlink(fifo)
        finally:
            os.close(fd)
        self._watch_oom(container)
        done({})

    def exec(self, request: Exec, done: Callable[[Json | AgentError], None]) -> None:
        """`crun exec`, or a process beside the agent; *done* gets {"pid"} or the error."""
        container = self._container(request.container)
        process = GuestProcess(container, request.channel)
        if not request.outside:
            _limit(container)  # it may not have been started yet
        if request.outside:
            self.processes.launch_outside(process, request.process, (request.rows, request.columns))
            done({"pid": process.pid})
            return
        base = f"{container.bundle}/exec-{request.channel}"
        described = request.process
        if request.rows and request.columns:
            # set by crun before the process runs, which may well be before we have its terminal
            described = {**described, "consoleSize": {"height": request.rows, "width": request.columns}}
        files.write(f"{base}.json", json.dumps(described), make=True)
        options = ["exec", "--detach", f"--process={base}.json", f"--pid-file={base}.pid"]
        if request.cgroup:
            options.append(f"--cgroup={request.cgroup}")

        def finished(error: AgentError | None) -> None:
            for suffix in ("json", "pid"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{base}.{suffix}")
            if error is not None:
                done(error)
            else:
                done({"pid": process.pid})

        size = (request.rows, request.columns)
        self.processes.launch(process, options, f"{base}.pid", request.process, size, request.passed, finished)

    def signal(self, request: Signal) -> Json:
        """A signal to one process, or to every one in the container's cgroup."""
        container = self._container(request.container)
        if request.every:
            cgroups.signal_all(container.cgroup, request.number)
            return {}
        process = container.processes.get(request.channel)
        if process is None or not process.pid:
            raise AgentError(NOT_RUNNING)  # its end may be on its way to the host
        if process.status is not None:
            if request.number != signal.SIGKILL or not self.processes.drop_output(process):
                raise AgentError(NOT_RUNNING)
        elif process is container.init and not container.started and ends_waiting(request.number):
            process.killed_by = request.number  # crun, which waits there as process 1, would never get it
            cgroups.kill(process.pid, signal.SIGKILL)
        else:
            cgroups.kill(process.pid, request.number)
        return {}

    def freeze(self, request: Freeze, done: Callable[[Json | AgentError], None]) -> None:
        """Pause or resume; *done* is called once all processes stand still, or go on."""
        cgroup = self._container(request.container).cgroup
        cgroups.freeze(cgroup, request.frozen)
        deadline = time.monotonic() + _FREEZE_SECONDS

        def look() -> None:
            try:
                if not request.frozen or cgroups.is_frozen(cgroup):
                    done({})
                elif time.monotonic() < deadline:
                    self._loop.call_later(_LOOK_SECONDS, look)
                else:
                    cgroups.freeze(cgroup, False)
                    done(AgentError("unable to freeze: a process didn't stop in time"))
            except OSError as error:
                done(AgentError(f"unable to freeze: {error}"))

        look()

    def update(self, name: str, resources: Json, done: Callable[[Json | AgentError], None]) -> None:
        """`crun update`."""
        container = self._container(name)
        if container.cpu:
            container.cpu.update(cgroups.hold_back(resources))
        path = f"{container.bundle}/resources.json"
        files.write(path, json.dumps(resources), make=True)

        def finished(status: int) -> None:
            done({} if status == 0 else AgentError(crun.as_runc_says(crun.error(container.bundle, "update"), "")))

        self._crun.run(container.bundle, ["update", f"--resources={path}", container.crun_name], finished)

    def stats(self, name: str) -> Json:
        """The files of the container's cgroup, as text."""
        container = self._container(name)
        result = cgroups.contents(container.cgroup)
        if container.network:
            result["net/dev"] = _counters(networks.name(container.network))
        return result

    def has_file(self, name: str, path: str) -> bool:
        """Whether the container's own process would find *path*."""
        container = self._container(name)
        if container.init is None:
            return False
        try:
            root = os.open(f"/proc/{container.init.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False  # it has ended
        try:
            os.close(syscalls.open_in_root(root, path.lstrip("/"), os.O_PATH))
        except OSError:
            return False
        finally:
            os.close(root)
        return True

    def add_socket(self, request: AddSocket) -> None:
        """Put a socket over that of a server of the host's. Raises AgentError, OSError."""
        self.host_sockets.add(request, self.place(request))

    def place(self, request: AddSocket | FindServer | ConnectServer) -> SocketPlace:
        """The file in a container's mount that is meant. Raises AgentError."""
        container = self._container(request.container)
        mounted = container.mounts.get(request.mount)
        if mounted is None or container.init is None or not container.init.pid:
            raise AgentError(f"container {container.name} doesn't run, or has no mount {request.mount}")
        return SocketPlace(f"{container.share}/m{request.mount}", mounted, request.path, container.init.pid)

    def remove(self, name: str, done: Callable[[Json | AgentError], None]) -> None:
        """Forget a container and everything of it: processes, crun's state, cgroup, bundle."""
        container = self.containers.get(name)
        if container is None:
            done({})
            return
        for process in list(container.processes.values()):
            self.processes.close(process)
        cgroups.signal_all(container.cgroup, signal.SIGKILL)
        if container.notify is not None:
            container.notify.close()
            container.notify = None
        self.host_sockets.close(name)

        def deleted(status: int) -> None:
            shutil.rmtree(container.bundle, ignore_errors=True)
            self.containers.pop(name, None)
            submounts.release(container.submounts.difference(*(o.submounts for o in self.containers.values())))
            done({})

        self._crun.run(container.bundle, ["delete", "--force", container.crun_name], deleted)

    # --- inside

    def _place(self, request: Create) -> tuple[str, str, Prepared | None]:
        """Bundle and crun's name of a new container, and the prepared crun if that is to make it."""
        ready = self._prepared
        if ready is not None and ready.fits(request):
            self._prepared = None
            return ready.bundle, prepared.NAME, ready
        bundle = f"{_BUNDLES}/{request.container}"
        os.makedirs(bundle, mode=0o700)
        return bundle, request.container, None

    def _container(self, name: str) -> Container:
        try:
            return self.containers[name]
        except KeyError:
            raise AgentError(f"no container {name} in this virtual machine") from None

    def _namespace_path(self, container: str, kind: str) -> str:
        owner = self.containers.get(container)
        if owner is not None and kind == "network" and owner.network:
            return network.path(networks.name(owner.network))
        if owner is None or owner.init is None or not owner.init.pid:
            raise AgentError(f"container {container}, whose {kind} namespace is to be joined, isn't running")
        return f"/proc/{owner.init.pid}/ns/{namespace_name(kind)}"

    def _ending(self, process: GuestProcess) -> None:
        container = process.container
        if process is container.init:
            self._note_oom(container)
            # a shared PID namespace leaves the others of the cgroup alive; the container has ended all the same
            cgroups.signal_all(container.cgroup, signal.SIGKILL)

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
        kills = cgroups.oom_kills(container.cgroup)
        if kills > container.oom_kills:
            container.oom_kills = kills
            self._event(OutOfMemory(container.name))


def _limit(container: Container) -> None:
    """The quota of CPU time holds from now on. Raises OSError."""
    if container.cpu:
        cgroups.limit_cpu(container.cgroup, container.cpu)
        container.cpu = {}


def _mounted(spec: Json) -> dict[int, str]:
    """Where the mounts with sources in the share are mounted, by their numbers."""
    share = os.path.dirname(spec["root"]["path"])
    found = {}
    for mount in spec.get("mounts", ()):
        directory, name = os.path.split(mount.get("source", ""))
        if directory == share and name[:1] == "m" and name[1:].isdecimal():
            found[int(name[1:])] = mount["destination"]
    return found


def _refresh(container: Container) -> None:
    """Ask the host what the container's mounts are like now. Engines write files such as /etc/resolv.conf after create,
    and what the guest saw at create it would believe for a second."""
    for number in container.mounts:
        with suppress(OSError):
            fd = os.open(f"{container.share}/m{number}", os.O_PATH | os.O_CLOEXEC)
            try:
                handles.refresh(fd)
            finally:
                os.close(fd)


def _counters(name: str) -> str:
    """/proc/net/dev of a network namespace."""
    fd = network.open_namespace(name)
    try:
        return in_namespace(fd, lambda: files.read("/proc/thread-self/net/dev", 16384))
    finally:
        os.close(fd)
