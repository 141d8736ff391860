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
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from runvm.errors import RunvmError, VmmError
from runvm.hypervisor import template
from runvm.linux.loop import IN, Loop
from runvm.log import log
from runvm.protocol import messages
from runvm.protocol.connection import Connection
from runvm.protocol.frames import CREDIT_KIND, DNS, MESSAGE, STDIN, Frame, FrameError
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
    Notified,
    OutOfMemory,
    Signal,
    Status,
)
from runvm.sandbox import resources, settings
from runvm.sandbox.members import Client, Member, Task
from runvm.sandbox.running import RunningVm
from runvm.shares import virtiofs
from runvm.shares.tree import Share

if TYPE_CHECKING:
    from runvm.sandbox.plan import Plan, Started
    from runvm.shares import tree

    Start = Callable[[Plan], Started]

_ATTACH_SECONDS = 10.0
_KILL_SECONDS = 5.0
"""How long a killed container's end is waited for before the whole VM is ended, or the container given up."""
_FLUSH_SECONDS = 10.0
_OOM_SECONDS = 5.0
"""At most that often a guest's OOM kills are shown on the host, which takes a moment of everybody's time."""
_WAKE_SECONDS = 30.0
"""How long a guest that a template was made of may take to become this VM, before the template is taken for broken."""
_BUSY_SECONDS = 40.0
"""How much longer than a boot that may be where others have come up from the template: twenty that start at once on a
busy host are slow, and would all be slower still if they booted."""


class _Build(NamedTuple):
    """A container that is being built while it isn't known yet whether the VM's template is any good."""

    again: Callable[[], None]
    done: Callable[[Done | Failed], None]


class Supervisor:
    """The event loop of one VM, which *start* starts: now, and again without a template if that proves broken."""

    def __init__(self, plan: Plan, listener: socket.socket, share: tree.Tree, start: Start) -> None:
        self.plan = plan
        self.loop = Loop()
        self.members: dict[str, Member] = {}
        self._tasks: dict[int, Task] = {}
        self._waiting: dict[tuple[str, str], Callable[[], None]] = {}
        self._channel = 0
        self._listener = listener
        self._ending = False
        self._awake = False
        self._broken = False
        self._oom_shown = -_OOM_SECONDS
        self._builds: dict[str, _Build] = {}
        self._notes: list[str] = []
        self._start_vm = start
        self.tree = share
        self._adopt(start(plan))
        listener.setblocking(False)
        self.loop.watch(listener.fileno(), IN, self._accept)

    def _adopt(self, started: Started) -> None:
        """Take a VM over, and have its guest become this VM's."""
        if started.note:
            self._notes.append(started.note)
        self.vm = RunningVm(
            self.loop,
            self.plan,
            started,
            on_event=self._guest_event,
            on_frame=self._guest_frame,
            on_failure=self._fail,
            next_channel=self._next_channel,
        )
        self.agent, self.networks = self.vm.agent, self.vm.networks
        patience = _WAKE_SECONDS
        if self.plan.template and template.has_served(self.plan.template):
            patience = self.plan.config.boot_timeout_s + _BUSY_SECONDS
        wake = messages.Wake(time.time_ns(), os.urandom(64).hex(), virtiofs.TAG, settings.sysctls())
        self.agent.ask(wake, self._woken, timeout=patience)

    def run(self) -> None:
        """Serve until the last container has gone."""
        gc.collect()
        gc.freeze()
        self.loop.call_later(_ATTACH_SECONDS * 6, self._end_if_empty)
        try:
            self.loop.run()
        finally:
            self.close()

    def close(self) -> None:
        """End the VM and what belongs to it."""
        for task in list(self._tasks.values()):
            if task.shim is not None:
                task.shim.close()
        with ExitStack() as undo:  # what fails doesn't spare the rest
            undo.callback(self._listener.close)
            undo.callback(self.vm.close)

    def _fail(self, reason: str) -> None:
        """The VM has failed: the end, unless it was only the template's fault."""
        if self._broken:
            return
        if self._awake or self._ending:
            self._end(reason)
            return
        if not self.plan.template or self.vm.was_killed():
            words = self.vm.guest.last_words()
            log.error(f"the virtual machine failed while it started: {reason}", words)
            self._end(
                reason, failed="\n".join([f"the virtual machine failed while it started: {reason}", words]).strip()
            )
            return
        self._broken = True
        self.loop.call_later(0, lambda: self._start_again(reason))

    def _start_again(self, reason: str) -> None:
        """The VM anew, without the template that failed for *reason*; the containers that were to be built in it are,
        now."""
        if self._ending:
            return
        self.vm.close()
        broken = self.plan.template
        for member in self.members.values():
            self.tree.remove(member.place)
        self.plan = self.plan._replace(template="")
        builds = list(self._builds.values())
        try:
            self._adopt(self._start_vm(self.plan))
        except (RunvmError, OSError) as error:
            log.error(str(error), getattr(error, "details", ""))
            for build in builds:
                build.done(Failed(str(error)))
            self._end(str(error))
            return
        self._broken = False
        self._notes.append(template.drop(broken, reason))
        for build in builds:
            build.again()

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
        elif isinstance(request, messages.Update):
            self._update(client, number, request)
        elif isinstance(request, (messages.Freeze, messages.Stats)):
            self._member(request.container)
            self.agent.ask(request, lambda answer: client.reply(number, answer))
        else:
            client.reply(number, Failed(f"the supervisor doesn't serve {type(request).__name__}"))

    def _shim_message(self, task: Task, frame: Frame) -> None:
        _, request = messages.decode(frame.payload)
        if isinstance(request, messages.Resize):
            self.agent.tell(messages.Resize(task.channel, request.rows, request.columns))
        elif isinstance(request, Signal):
            self.agent.ask(Signal(task.member.name, task.channel, request.number, False), lambda answer: None)

    def _client_gone(self, client: Client) -> None:
        client.connection = None
        task = client.task
        if task is not None:
            task.shim = None
            if task.ended or not task.running and task.key != "init":
                self._forget(task)
            elif task.running:
                # the host's process for it is dead (kill -9): so shall be the guest's
                self.agent.ask(Signal(task.member.name, task.channel, int(signal.SIGKILL), False), lambda answer: None)
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
        task = Task(member, request.key, self._next_channel())
        task.shim = client.connection
        client.task = task
        member.tasks[request.key] = task
        self._tasks[task.channel] = task
        waiting = self._waiting.pop((request.container, request.key), None)
        if waiting is not None:
            waiting()

    def _next_channel(self) -> int:
        self._channel += 1
        return self._channel

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
        member.place = request.place
        member.cgroups = tuple(request.cgroups)
        member.limit_mib = request.limit_mib
        member.pod_mib = request.pod_mib

        def built(answer: Done | Failed) -> None:
            if isinstance(answer, Done):
                member.built = True
                task.running = True
            client.building = ""
            client.reply(number, answer if isinstance(answer, Failed) else Done({"notes": self._notes}))
            if isinstance(answer, Failed):
                self._drop(member.name, lambda: None)

        def build() -> None:
            self.vm.sizing.memory(self.members.values())
            if self.vm.sizing.processors(request.spec["linux"]["resources"]):
                self.agent.ask(messages.Online(self.vm.sizing.vcpus), _warn)
            shares = {name: Share(**share) for name, share in request.shares.items()}
            self.tree.add(member.place, shares, request.shim_pid)
            if request.notify and member.notifier is None:
                from runvm.sandbox.notify import Notifier

                member.notifier = Notifier(request.notify)
            network, interfaces = 0, dict[str, Any]()
            if request.network:
                network, interfaces = self.networks.join(member.name, request.shim_pid)
            create = Create(
                member.name,
                task.channel,
                request.spec,
                request.namespaces,
                network,
                interfaces,
                request.rows,
                request.columns,
                request.passed,
                bool(request.notify),
            )
            self.agent.ask(create, built, timeout=self.plan.config.boot_timeout_s + _BUSY_SECONDS + 10)

        def again() -> None:
            try:
                build()
            except (RunvmError, OSError) as error:
                built(Failed(str(error)))

        if self._awake:
            build()
            return
        self._builds[member.name] = _Build(again, built)
        try:
            build()
        except VmmError as error:
            self._fail(str(error))
            if not self._broken:
                raise

    def _update(self, client: Client, number: int, request: messages.Update) -> None:
        member = self._member(request.container)

        def update(online: Done | Failed) -> None:
            if isinstance(online, Failed):
                client.reply(number, online)
            else:
                self.agent.ask(request, lambda answer: client.reply(number, answer))

        plugged = self.vm.sizing.processors(request.resources)
        if request.resources.get("memory", {}).get("limit"):
            member.limit_mib = resources.limit_mib(request.resources)
            self.vm.sizing.memory(self.members.values())
        if plugged:
            self.agent.ask(messages.Online(self.vm.sizing.vcpus), update)
        else:
            update(Done({}))

    def _start(self, client: Client, number: int, request: messages.Start) -> None:
        member = self._member(request.container)
        self.networks.refresh(member.name)
        self.agent.ask(request, lambda answer: client.reply(number, answer))

    def _enter(self, client: Client, number: int, request: Enter, task: Task) -> None:
        member = self._member(request.container)
        if not member.alive:
            raise RunvmError("cannot exec in a stopped container")

        def entered(answer: Done | Failed) -> None:
            if isinstance(answer, Done):
                task.running = True
                if task.shim is None:  # it died meanwhile
                    kill = Signal(member.name, task.channel, int(signal.SIGKILL), False)
                    self.agent.ask(kill, lambda answer: None)
            client.reply(number, answer)
            if isinstance(answer, Failed):
                self._forget(task)

        run = Exec(
            member.name,
            task.channel,
            request.process,
            request.rows,
            request.columns,
            request.passed,
            request.cgroup,
            request.outside,
        )
        self.agent.ask(run, entered)

    def _signal(self, client: Client, number: int, request: Signal) -> None:
        member = self._member(request.container)
        task = member.tasks.get("init")
        channel = task.channel if task is not None else 0
        self.agent.ask(
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
        self.agent.ask(Signal(name, member.tasks["init"].channel, int(signal.SIGKILL), True), lambda answer: None)
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
        if member.notifier is not None:
            member.notifier.close()
        for task in list(member.tasks.values()):
            self._tasks.pop(task.channel, None)
            if task.shim is not None:
                task.shim.close()
        if self.members:
            self.agent.ask(messages.Remove(member.name), lambda answer: self._removed(member))
            return
        self.networks.leave(member.name)
        # the VM ends, and everything with it: no need to take it apart
        self._end("its last container has gone")
        self._finish_drop(member)

    def _removed(self, member: Member) -> None:
        self.networks.leave(member.name)
        self.tree.remove(member.place)
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
            "console": self.vm.guest.last_words(),
            "template": self.plan.template,
            "accelerator": self.plan.machine.accelerator,
        }

    # --- the guest

    def _guest_frame(self, frame: Frame) -> None:
        if frame.kind == DNS:
            self.networks.query(frame)
            return
        task = self._tasks.get(frame.channel)
        if task is None and self.networks.relay(frame):
            return
        if task is None or task.shim is None:
            if frame.kind != CREDIT_KIND and frame.payload:
                self.agent.credit(frame)
            return
        task.shim.send(frame.kind, 0, frame.payload)

    def _guest_event(self, message: Any) -> None:
        if isinstance(message, Exited):
            self._exited(message)
        elif isinstance(message, OutOfMemory):
            self._out_of_memory(message.container)
        elif isinstance(message, Notified):
            member = self.members.get(message.container)
            if member is not None and member.notifier is not None:
                member.notifier.say(message.text)

    def _out_of_memory(self, container: str) -> None:
        member = self.members.get(container)
        if member is not None and member.alive:
            from runvm.sandbox import oom

            log.info(f"container {container}: a process was killed for the memory limit")
            if self._oom_shown + _OOM_SECONDS < time.monotonic():
                oom.show(member.cgroups)
                self._oom_shown = time.monotonic()

    def _woken(self, answer: Done | Failed) -> None:
        if isinstance(answer, Done):
            self._awake = True
            self._builds.clear()
            if self.plan.template:
                template.note_served(self.plan.template)
        else:
            self._fail(f"the guest can't be set up: {answer.error}")

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

    def _end(self, reason: str, *, failed: str = "container not running") -> None:
        """Stop; what is still asked for fails with the text *failed*."""
        if not self._ending:
            self._ending = True
            log.debug(f"sandbox {self.plan.sandbox.name} ends: {reason}")
            self.agent.fail(failed)
            self.loop.stop()


def _warn(answer: Done | Failed) -> None:
    if isinstance(answer, Failed):
        log.warning(answer.error)
