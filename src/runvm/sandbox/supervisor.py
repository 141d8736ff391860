"""One per VM: the parent of the VMM and of virtiofsd, owner of the agent's channel, the share, the network and the
control socket.

Forked by `create`, it outlives the command and ends with the VM's last container. When it dies, what it started dies
with it (PR_SET_PDEATHSIG), and each shim sees its connection close.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from runvm.errors import RunvmError
from runvm.hypervisor import boot, template
from runvm.linux import process, syscalls
from runvm.linux.loop import IN, Loop
from runvm.log import log
from runvm.protocol import frames, messages
from runvm.protocol.connection import Connection
from runvm.protocol.frames import CREDIT_KIND, MESSAGE, STDIN, Frame, FrameError
from runvm.protocol.messages import (
    Attach,
    Build,
    Create,
    Done,
    Drop,
    Enter,
    Exec,
    Exited,
    Failed,
    OutOfMemory,
    Signal,
    Status,
)
from runvm.sandbox import registry
from runvm.sandbox.networks import Networks
from runvm.shares import tree, virtiofs

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Driver, Machine
    from runvm.sandbox.registry import Sandbox

_ATTACH_SECONDS = 10.0
_KILL_SECONDS = 5.0
"""How long a killed container's end is waited for before the whole VM is ended, or the container given up."""
_FLUSH_SECONDS = 10.0
_REQUEST_SECONDS = 45.0
"""How long the guest may take for one request; below what commands wait (registry.ANSWER_SECONDS)."""


class Plan(NamedTuple):
    """What `create` hands over to a new supervisor."""

    config: Config
    driver: Driver
    machine: Machine
    template: str
    sandbox: Sandbox
    modules: str
    namespace: int


class Task:
    """One process in the guest, by its channel: a container's init (key 'init') or an exec."""

    def __init__(self, member: Member, key: str, channel: int) -> None:
        self.member = member
        self.key = key
        self.channel = channel
        self.shim: Connection | None = None
        self.running = False
        self.ended = False


class Member:
    """A container of this VM."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks: dict[str, Task] = {}
        self.built = False
        self.dropping: list[Callable[[], None]] = []

    @property
    def alive(self) -> bool:
        """Whether its init may still run, or is about to."""
        init = self.tasks.get("init")
        return init is not None and not init.ended


class Client:
    """A connection to the control socket: a command's, or after `Attach` a shim's."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.task: Task | None = None
        self.building = ""

    def reply(self, number: int, answer: Done | Failed) -> None:
        """Answer request *number*."""
        if self.connection is not None:
            self.connection.send(MESSAGE, 0, messages.encode(answer, number))


class Supervisor:
    """The event loop of one VM."""

    def __init__(self, plan: Plan, listener: socket.socket) -> None:
        self.plan = plan
        self.loop = Loop()
        self.members: dict[str, Member] = {}
        self._tasks: dict[int, Task] = {}
        self._waiting: dict[tuple[str, str], Callable[[], None]] = {}
        self._requests: dict[int, Callable[[Done | Failed], None]] = {}
        self._number = 0
        self._channel = 0
        self._listener = listener
        self._ending = False
        self.tree = tree.Tree(f"{plan.sandbox.directory}/share")
        if plan.modules:
            self.tree.add(".", "modules", plan.modules, recursive=False, read_only=True)
        self.daemon = virtiofs.serve(plan.config, self.tree.path, log=f"{plan.sandbox.directory}/virtiofsd.log")
        self.networks = Networks()
        tap = self.networks.first_tap(plan.namespace) if plan.namespace >= 0 else template.scratch_tap()
        self.guest = self._launch(tap)
        os.close(tap)
        self.agent = Connection(
            self.loop,
            self.guest.agent.detach(),
            on_frame=self._from_guest,
            on_close=lambda reason: self._end(f"the guest has ended ({reason})"),
            max_message=frames.MAX_GUEST_MESSAGE,
        )
        registry.record(
            plan.sandbox, {"supervisor": os.getpid(), "vmm": self.guest.vm.pid, "virtiofsd": self.daemon.pid}
        )
        self._watch_child(self.guest.vm.pid, "the VMM")
        self._watch_child(self.daemon.pid, "virtiofsd")
        self.loop.watch(self.guest.console.fileno(), IN, self._console)
        listener.setblocking(False)
        self.loop.watch(listener.fileno(), IN, self._accept)
        wake = messages.Wake(time.time_ns(), os.urandom(64).hex(), virtiofs.TAG)
        self._ask(wake, self._woken)

    def _launch(self, tap: int) -> boot.Guest:
        """Start the VM from its template, or boot it where there is none or it fails; then plug the share in and let
        it run."""
        plan = self.plan
        deadline = time.monotonic() + plan.config.boot_timeout_s
        directory = plan.sandbox.directory
        guest = None
        if plan.template:
            try:
                guest = boot.start(
                    plan.driver, plan.machine, directory=directory, tap=tap, template=plan.template, deadline=deadline
                )
            except (RunvmError, OSError) as error:
                log.warning(f"starting from the template failed, booting instead: {error}")
                template.drop(plan.config, plan.template)
                syscalls.unmount(f"{directory}/jail", syscalls.MNT_DETACH)
        cold = guest is None
        if guest is None:
            guest = boot.start(plan.driver, plan.machine, directory=directory, tap=tap, deadline=deadline)
        guest.vm.plug_share(self.daemon.socket, virtiofs.TAG, deadline=deadline)
        guest.vm.resume(deadline=deadline)
        if cold:
            guest.wait_hello(deadline=deadline)
        return guest

    def run(self) -> None:
        """Serve until the last container has gone."""
        gc.collect()
        gc.freeze()
        self.loop.call_later(_ATTACH_SECONDS * 6, self._end_if_empty)
        self.loop.run()
        self.close()

    def close(self) -> None:
        """End the VM and what belongs to it."""
        for task in list(self._tasks.values()):
            if task.shim is not None:
                task.shim.close()
        self._write_console()
        self.guest.kill()
        self.daemon.kill()
        self._listener.close()

    # --- connections

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        client = Client()
        client.connection = Connection(
            self.loop,
            sock.detach(),
            on_frame=lambda frame: self._from_client(client, frame),
            on_close=lambda reason: self._client_gone(client),
        )

    def _from_client(self, client: Client, frame: Frame) -> None:
        if client.task is not None:
            # a shim numbers nothing: its own process is all that it can talk to
            if frame.kind == MESSAGE:
                self._shim_message(client.task, frame)
            elif frame.kind != STDIN or not client.task.ended:
                self.agent.send(frame.kind, client.task.channel, frame.payload)
            return
        if frame.kind != MESSAGE:
            raise FrameError("a stream before its Attach")
        number, request = messages.decode(frame.payload)
        try:
            self._serve(client, number, request)
        except (RunvmError, OSError) as error:
            client.reply(number, Failed(str(error)))

    def _serve(self, client: Client, number: int, request: Any) -> None:
        if isinstance(request, Attach):
            self._attach(client, request)
        elif isinstance(request, Build):
            client.building = request.container
            self._when_attached(
                client, number, request.container, "init", lambda task: self._build(client, number, request, task)
            )
        elif isinstance(request, Enter):
            self._when_attached(
                client, number, request.container, request.key, lambda task: self._enter(client, number, request, task)
            )
        elif isinstance(request, Drop):
            self._drop(request.container, lambda: client.reply(number, Done({})))
        elif isinstance(request, Status):
            client.reply(number, Done(self._status()))
        elif isinstance(request, Signal):
            self._signal(client, number, request)
        elif isinstance(request, messages.Start):
            self._start(client, number, request)
        elif isinstance(request, (messages.Freeze, messages.Update, messages.Stats)):
            self._member(request.container)
            self._ask(request, lambda answer: client.reply(number, answer))
        else:
            client.reply(number, Failed(f"the supervisor doesn't serve {type(request).__name__}"))

    def _shim_message(self, task: Task, frame: Frame) -> None:
        _, request = messages.decode(frame.payload)
        if isinstance(request, messages.Resize):
            self._tell(messages.Resize(task.channel, request.rows, request.columns))
        elif isinstance(request, Signal):
            self._ask(Signal(task.member.name, task.channel, request.number, False), lambda answer: None)

    def _client_gone(self, client: Client) -> None:
        client.connection = None
        task = client.task
        if task is not None:
            task.shim = None
            if task.ended or not task.running and task.key != "init":
                self._forget(task)
            elif task.running:
                # the host's process for it is dead (kill -9): so shall be the guest's
                self._ask(Signal(task.member.name, task.channel, int(signal.SIGKILL), False), lambda answer: None)
                if task.key == "init":
                    self._give_up_later(task.member)
            elif client.building == "":
                self._drop(task.member.name, lambda: None)
        elif client.building:
            member = self.members.get(client.building)
            if member is not None and not member.built:
                self._drop(member.name, lambda: None)

    def _attach(self, client: Client, request: Attach) -> None:
        member = self.members.get(request.container)
        if member is None:
            if request.key != "init":
                raise RunvmError(f"container {request.container} isn't in this virtual machine")
            member = self.members[request.container] = Member(request.container)
        self._channel += 1
        task = Task(member, request.key, self._channel)
        task.shim = client.connection
        client.task = task
        member.tasks[request.key] = task
        self._tasks[task.channel] = task
        waiting = self._waiting.pop((request.container, request.key), None)
        if waiting is not None:
            waiting()

    def _when_attached(
        self, client: Client, number: int, container: str, key: str, action: Callable[[Task], None]
    ) -> None:
        """Run *action* now, or when the shim's own connection, which comes by another socket, has been taken."""

        def run() -> None:
            try:
                action(self.members[container].tasks[key])
            except (RunvmError, OSError) as error:
                client.reply(number, Failed(str(error)))

        def late() -> None:
            if self._waiting.pop((container, key), None) is not None:
                client.reply(number, Failed("timed out waiting for the shim to attach"))

        member = self.members.get(container)
        if member is not None and key in member.tasks:
            run()
        else:
            self._waiting[container, key] = run
            self.loop.call_later(_ATTACH_SECONDS, late)

    # --- requests

    def _build(self, client: Client, number: int, request: Build, task: Task) -> None:
        member = task.member
        for name, share in request.shares.items():
            self.tree.add(
                member.name,
                name,
                share["source"],
                recursive=bool(share["recursive"]),
                read_only=bool(share["read_only"]),
            )
        network, interfaces = "", dict[str, Any]()
        if request.network:
            network, interfaces = self.networks.join(self.guest.vm, member.name, request.shim_pid)
        create = Create(
            member.name, task.channel, request.spec, request.namespaces, network, interfaces, request.rows, request.columns,  # noqa: E501
        )  # fmt: skip

        def built(answer: Done | Failed) -> None:
            if isinstance(answer, Done):
                member.built = True
                task.running = True
            client.building = ""
            client.reply(number, answer)
            if isinstance(answer, Failed):
                self._drop(member.name, lambda: None)

        self._ask(create, built)

    def _start(self, client: Client, number: int, request: messages.Start) -> None:
        member = self._member(request.container)
        # Podman fills a new network namespace between create and start where there is a user namespace
        change = self.networks.refresh(self.guest.vm, member.name)
        if change is not None:
            self._ask(change, lambda answer: None)
        self._ask(request, lambda answer: client.reply(number, answer))

    def _enter(self, client: Client, number: int, request: Enter, task: Task) -> None:
        member = self._member(request.container)
        if not member.alive:
            raise RunvmError("cannot exec in a stopped container")

        def entered(answer: Done | Failed) -> None:
            if isinstance(answer, Done):
                task.running = True
            client.reply(number, answer)
            if isinstance(answer, Failed):
                self._forget(task)

        self._ask(
            Exec(member.name, task.channel, request.process, request.rows, request.columns, request.cgroup), entered
        )

    def _signal(self, client: Client, number: int, request: Signal) -> None:
        member = self._member(request.container)
        task = member.tasks.get("init")
        channel = task.channel if task is not None else 0
        self._ask(
            Signal(member.name, channel, request.number, request.every), lambda answer: client.reply(number, answer)
        )

    def _drop(self, name: str, done: Callable[[], None]) -> None:
        """Forget a container, killing it first if need be; *done* is called when nothing of it is left here."""
        member = self.members.get(name)
        if member is None:
            done()
            return
        member.dropping.append(done)
        if len(member.dropping) > 1:
            return
        if not member.alive or not member.built or self._alone(member):
            self._dropped(member)
            return
        self._ask(Signal(name, member.tasks["init"].channel, int(signal.SIGKILL), True), lambda answer: None)
        self._give_up_later(member)

    def _give_up_later(self, member: Member) -> None:
        """If a killed container doesn't end, end its VM where it is alone there, else only what we know of it."""

        def late() -> None:
            if self.members.get(member.name) is member and member.alive:
                log.warning(f"container {member.name} did not end {_KILL_SECONDS:.0f} s after it was killed")
                if self._alone(member):
                    self._end("its only container does not end")
                self._dropped(member)

        self.loop.call_later(_KILL_SECONDS, late)

    def _dropped(self, member: Member) -> None:
        if self.members.pop(member.name, None) is None:
            return
        for task in list(member.tasks.values()):
            self._tasks.pop(task.channel, None)
            if task.shim is not None:
                task.shim.close()
        self.networks.leave(member.name)
        if self.members:
            self._ask(messages.Remove(member.name), lambda answer: self._removed(member))
            return
        # the VM ends, and everything with it: no need to take it apart
        self._end("its last container has gone")
        self._finish_drop(member)

    def _removed(self, member: Member) -> None:
        self.tree.remove(member.name)
        self._finish_drop(member)

    def _finish_drop(self, member: Member) -> None:
        for done in member.dropping:
            done()
        member.dropping = []

    def _alone(self, member: Member) -> bool:
        return all(other is member or not other.alive for other in self.members.values())

    def _member(self, name: str) -> Member:
        member = self.members.get(name)
        if member is None:
            raise RunvmError("container not running")
        return member

    def _status(self) -> messages.Json:
        return {
            "containers": {
                name: {key: task.channel for key, task in member.tasks.items()} for name, member in self.members.items()
            },
            "console": self.guest.last_words(),
            "template": self.plan.template,
            "accelerator": self.plan.machine.accelerator,
        }

    # --- the guest

    def _tell(self, message: Any, number: int = 0) -> None:
        self.agent.send(MESSAGE, 0, messages.encode(message, number))

    def _ask(self, message: Any, answered: Callable[[Done | Failed], None]) -> None:
        """A request to the guest; *answered* gets its answer, or after _REQUEST_SECONDS a failure that says what was
        waited for."""
        self._number = self._number % 0xFFFFFFFE + 1
        number = self._number
        self._requests[number] = answered
        self._tell(message, number)

        def late() -> None:
            waiting = self._requests.pop(number, None)
            if waiting is not None:
                waiting(Failed(f"timed out waiting for the guest to answer {type(message).__name__}"))

        self.loop.call_later(_REQUEST_SECONDS, late)

    def _from_guest(self, frame: Frame) -> None:
        if frame.kind == MESSAGE:
            number, message = messages.decode(frame.payload, messages.FROM_GUEST)
            self._guest_message(number, message)
            return
        task = self._tasks.get(frame.channel)
        if task is None or task.shim is None:
            if frame.kind != CREDIT_KIND and frame.payload:
                # nobody reads: credit all the same, else the guest's process stalls until it is killed
                self.agent.send_raw(frames.encode_credit(frame.channel, frame.kind, len(frame.payload)))
            return
        task.shim.send(frame.kind, 0, frame.payload)

    def _guest_message(self, number: int, message: Any) -> None:
        if isinstance(message, (Done, Failed)):
            answered = self._requests.pop(number, None)
            if answered is not None:
                answered(message)
        elif isinstance(message, Exited):
            self._exited(message)
        elif isinstance(message, OutOfMemory):
            log.info(f"container {message.container}: a process was killed for the memory limit")

    def _woken(self, answer: Done | Failed) -> None:
        if isinstance(answer, Failed):
            log.error(f"the guest can't be set up: {answer.error}", self.guest.last_words())
            self._end(answer.error)

    def _exited(self, event: Exited) -> None:
        task = self._tasks.get(event.channel)
        if task is None or task.ended:
            return
        task.ended = True
        task.running = False
        if task.shim is not None:
            task.shim.send(MESSAGE, 0, messages.encode(Exited(0, event.code & 0xFF, event.signal)))
        else:
            self._forget(task)
        if task.key == "init":
            member = task.member
            if member.dropping:
                self._dropped(member)
            elif not any(other.alive for other in self.members.values()):
                self.loop.call_later(_FLUSH_SECONDS, lambda: self._end("its last container has ended"))
                self._end_if_flushed()

    def _forget(self, task: Task) -> None:
        self._tasks.pop(task.channel, None)
        if task.key != "init":
            task.member.tasks.pop(task.key, None)
        self._end_if_flushed()

    def _end_if_flushed(self) -> None:
        """End the VM once no container lives and each shim has taken its last output and its exit code."""
        if any(member.alive for member in self.members.values()):
            return
        if not any(task.shim is not None for task in self._tasks.values()):
            self._end("its last container has ended")

    def _end_if_empty(self) -> None:
        if not self.members:
            self._end("no container came")

    # --- the host

    def _watch_child(self, pid: int, what: str) -> None:
        fd = os.pidfd_open(pid)

        def gone(events: int) -> None:
            self.loop.forget(fd)
            self._end(f"{what} has ended")

        self.loop.watch(fd, IN, gone)

    def _console(self, events: int) -> None:
        before = self.guest.console_tail
        self.guest.read_console()
        if self.guest.console_tail is before:
            self.loop.forget(self.guest.console.fileno())

    def _write_console(self) -> None:
        self.guest.read_console()
        with open(f"{self.plan.sandbox.directory}/console.log", "wb") as file:
            file.write(self.guest.console_tail)

    def _end(self, reason: str) -> None:
        if not self._ending:
            self._ending = True
            log.debug(f"sandbox {self.plan.sandbox.name} ends: {reason}")
            for answered in list(self._requests.values()):
                answered(Failed("container not running"))
            self._requests.clear()
            self.loop.stop()


def main(plan: Plan, listener: socket.socket, report: int) -> None:
    """The life of a supervisor, in the forked process. One byte on *report* tells the command that the VM runs, a
    text that it doesn't."""
    os.setsid()
    syscalls.set_name("runvm-sandbox")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # an engine's stop of a whole process group isn't meant for the VM
    out = os.open(f"{plan.sandbox.directory}/supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    process.redirect(out)
    keep = [listener.fileno(), report] + ([plan.namespace] if plan.namespace >= 0 else [])
    process.close_above(2, tuple(keep))
    log.path = ""
    registry.record(plan.sandbox, {"supervisor": os.getpid()})
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    os.chdir("/")
    supervisor = None
    try:
        supervisor = Supervisor(plan, listener)
        os.write(report, b"\0")
        os.close(report)
        supervisor.run()
    except (RunvmError, OSError, FrameError) as error:
        details = getattr(error, "details", "")
        log.error(str(error), details)
        if supervisor is None:
            os.write(report, b"\1" + "\n".join(part for part in (str(error), details) if part).encode()[:32768])
    finally:
        import shutil

        if supervisor is None or not os.environ.get("RUNVM_KEEP"):
            for name in ("jail", "share"):
                try:
                    syscalls.unmount(f"{plan.sandbox.directory}/{name}", syscalls.MNT_DETACH)
                except OSError:
                    continue
            shutil.rmtree(plan.sandbox.directory, ignore_errors=True)
