"""The containers of a VM and their processes, as its supervisor keeps them: attached, created, running, ended, deleted.

A container's life here: its shim attaches, its CreateContainer comes, the guest has made it, its process ends, it is
deleted. The VM ends with its last container; that is decided here and nowhere else.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from runvm.cgroup.oom import Display
from runvm.errors import ContainerExistsError, RunvmError, VmmError, words
from runvm.log import log
from runvm.network import networks
from runvm.protocol import messages
from runvm.protocol.frames import CREDIT_KIND, DNS, MESSAGE, STDIN, Frame
from runvm.protocol.messages import Attach, CreateContainer, Done, ExecProcess, Exited, Failed, Signal
from runvm.sandbox import limits
from runvm.sandbox.checkpoints import Checkpoints
from runvm.sandbox.creation import find_sockets, make_in_guest
from runvm.sandbox.members import INIT, Member, Task
from runvm.sandbox.vm_life import VmCreation

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.linux.loop import Loop
    from runvm.sandbox.clients import Client, Reply
    from runvm.sandbox.vm_life import VmLife
    from runvm.shares.tree import Tree

_ATTACH_SECONDS = 10.0
_KILL_SECONDS = 5.0
"""How long a killed container's end is waited for before the whole VM is ended, or the container given up."""
_FLUSH_SECONDS = 10.0


def _ignore(answer: Done | Failed) -> None:
    """Nobody waits for this answer."""


class Containers:
    """Of the VM *life*, whose files are in *tree*."""

    def __init__(self, loop: Loop, tree: Tree) -> None:
        self.members: dict[str, Member] = {}
        self.life: VmLife
        self._loop = loop
        self._tree = tree
        self._tasks: dict[int, Task] = {}
        self._waiting: dict[tuple[str, str], Callable[[], None]] = {}
        self._kills = Display(loop)
        self.checkpoints = Checkpoints(loop, self, tree.layout)

    # --- requests

    def attach(self, client: Client, request: Attach, reply: Reply) -> None:
        """A shim's connection: from now on it has the streams of its process."""
        member = self.members.get(request.container)
        if request.key == INIT and member is not None:
            client.close()
            raise ContainerExistsError()
        if member is None:
            if request.key != INIT:
                raise RunvmError(f"container {request.container} isn't in this virtual machine")
            member = self.members[request.container] = Member(request.container)
        task = Task(member, request.key, self.life.next_channel())
        task.shim = client.connection
        client.task = task
        member.tasks[request.key] = task
        self._tasks[task.channel] = task
        waiting = self._waiting.pop((request.container, request.key), None)
        if waiting is not None:
            waiting()

    def create(self, client: Client, request: CreateContainer, reply: Reply) -> None:
        """Make the container in the guest, once its shim has attached."""
        client.creating = request.container
        self.when_attached(request.container, INIT, lambda task: self._create(client, request, task, reply), reply)

    def exec(self, client: Client, request: ExecProcess, reply: Reply) -> None:
        """A further process, once its shim has attached."""
        self.when_attached(request.container, request.key, lambda task: self._exec(request, task, reply), reply)

    def start(self, client: Client, request: messages.Start, reply: Reply) -> None:
        """Let a created container's process run."""
        member = self._member(request.container)
        if self.checkpoints.start(reply):
            return
        self.life.vm.networks.refresh(member.name)

        def started(answer: Done | Failed) -> None:
            self.life.served = self.life.served or isinstance(answer, Done)
            reply(answer)

        self.life.vm.agent.ask(request, started)

    def signal(self, client: Client, request: Signal, reply: Reply) -> None:
        """Signal a container's init, or all its processes."""
        member = self._member(request.container)
        task = member.tasks.get(INIT)
        channel = task.channel if task is not None else 0
        if self.checkpoints.signal(channel, request.number, reply):
            return
        if request.number == signal.SIGKILL and task is not None and task.ended and task.tell_end(137, request.number):
            reply(Done({}))  # what is left of it is output that nobody takes: without a VM it would have hung in that
            return
        self.life.vm.agent.ask(Signal(member.name, channel, request.number, request.every), reply)
        if request.number == signal.SIGKILL:  # which holds whatever the guest says
            self._give_up_later(member, after_checkpoint=True)

    def pass_on(
        self, client: Client, request: messages.Freeze | messages.Stats | messages.FindFile, reply: Reply
    ) -> None:
        """What is the guest's alone to answer."""
        self._member(request.container)
        self.life.vm.agent.ask(request, reply)

    def update(self, client: Client, request: messages.Update, reply: Reply) -> None:
        """Other limits: the VM grows as they ask, then the guest enforces them."""
        member = self._member(request.container)
        member.updated = True
        limits.enforce(self.life.vm, self.members.values(), member, request.resources, reply)

    def delete(self, client: Client, request: messages.DeleteContainer, reply: Reply) -> None:
        """Forget a container; the answer tells whether the VM ends with it."""
        self._delete(request.container, lambda: reply(Done({"last": not self.members})))

    def status(self, client: Client, request: messages.Status, reply: Reply) -> None:
        """What is known, for `runvm debug` and tests."""
        reply(
            Done(
                {
                    "containers": {
                        name: {key: task.channel for key, task in member.tasks.items()}
                        for name, member in self.members.items()
                    },
                    "healthy": [name for name, member in self.members.items() if member.healthy],
                    "console": self.life.vm.guest.console_end(),
                    "template": self.life.plan.template,
                    "hypervisor": self.life.plan.driver.name,
                    "accelerator": self.life.plan.machine.accelerator,
                }
            )
        )

    # --- shims

    def shim_frame(self, task: Task, frame: Frame) -> None:
        """From a shim, which numbers nothing: its own process is all that it can talk to."""
        if frame.kind != MESSAGE:
            if frame.kind != STDIN or not task.ended:
                self.life.vm.agent.send(frame.kind, task.channel, frame.payload)
                if task.shim is not None:
                    task.shim.wait_at(self.life.vm.agent.gate)
            return
        _, request = messages.decode(frame.payload)
        if isinstance(request, messages.Resize):
            self.life.vm.agent.tell(messages.Resize(task.channel, request.rows, request.columns))
        elif isinstance(request, Done):
            self.checkpoints.shim_answered(task)
        elif isinstance(request, Signal):
            self.life.vm.agent.ask(Signal(task.member.name, task.channel, request.number, False), _ignore)

    def client_gone(self, client: Client) -> None:
        """A command or a shim has ended."""
        self.checkpoints.client_gone(client)
        task = client.task
        if task is not None:
            task.shim = None
            self._shim_gone(task)
        elif client.creating:
            member = self.members.get(client.creating)
            if member is not None and not member.created:
                self._delete(member.name, lambda: None)

    def _shim_gone(self, task: Task) -> None:
        if task.ended or not task.running and task.key != INIT:
            self._forget(task)
        elif task.running:
            # the host's process for it is dead (kill -9): so shall be the guest's
            self._kill(task)
            if task.key == INIT:
                self._give_up_later(task.member)
        else:
            self._delete(task.member.name, lambda: None)

    # --- the guest

    def guest_frame(self, frame: Frame) -> None:
        """A stream's frame, a DNS query, or one of a forwarded connection."""
        vm_networks, agent = self.life.vm.networks, self.life.vm.agent
        if self.checkpoints.awaited and frame.kind == CREDIT_KIND:
            return  # for what another shim has sent
        if frame.kind == DNS:
            vm_networks.query(frame)
            return
        task = self._tasks.get(frame.channel)
        if task is None and (vm_networks.relay(frame) or self.life.vm.sockets.frame(frame)):
            return
        if task is None or task.shim is None:
            if frame.kind != CREDIT_KIND and frame.payload:
                agent.credit(frame)
            return
        task.shim.send(frame.kind, 0, frame.payload)

    def is_init(self, channel: int) -> bool:
        """Whether it is a container's own process that has the *channel*."""
        task = self._tasks.get(channel)
        return task is not None and task.key == INIT

    def guest_event(self, message: Any) -> None:
        """A process has ended, or a container has something to say."""
        if isinstance(message, Exited):
            # an engine that has seen the end doesn't look any more for what it was killed
            self._kills.when_shown(lambda: self._exited(message))
        elif isinstance(message, messages.OutOfMemory):
            self._out_of_memory(message.container)
        elif isinstance(message, messages.MemoryLow):
            self.life.vm.growth.demand.more()
        elif isinstance(message, messages.MemoryFree):
            self.life.vm.growth.demand.less(message.mib)
        elif isinstance(message, messages.Notified):
            member = self.members.get(message.container)
            if member is not None and member.notifier is not None:
                member.notifier.say(message.text)
        elif isinstance(message, messages.Dial):
            member = self.members.get(message.container)
            self.life.vm.sockets.dial(None if member is None else member.sockets, message)
        elif isinstance(message, messages.Watch):
            self.life.vm.changes.watch(message.directories)

    def _out_of_memory(self, container: str) -> None:
        member = self.members.get(container)
        if member is not None and member.alive:
            log.info(f"container {container}: a process was killed for the memory limit")
            self._kills.show(member.cgroups)

    def _exited(self, event: Exited) -> None:
        task = self._tasks.get(event.channel)
        if task is None or task.ended:
            return
        task.end(event.code)
        if not task.tell_end(event.code & 0xFF, event.signal):
            self._forget(task)
        if task.key == INIT:
            member = task.member
            if member.deleting:
                self._deleted(member)
            elif not any(other.alive for other in self.members.values()):
                self._loop.call_later(_FLUSH_SECONDS, lambda: self.life.end("its last container has ended"))
                self._end_if_flushed()

    # --- creating

    def when_attached(self, container: str, key: str, action: Callable[[Task], None], reply: Reply) -> None:
        """Run *action* now, or when the shim's own connection, which comes by another socket, has been taken."""

        def run() -> None:
            try:
                action(self.members[container].tasks[key])
            except (RunvmError, OSError) as error:
                reply(Failed(words(error)))

        def late() -> None:
            if self._waiting.pop((container, key), None) is not None:
                reply(Failed("timed out waiting for the shim to attach"))

        member = self.members.get(container)
        if member is not None and key in member.tasks:
            run()
        else:
            self._waiting[container, key] = run
            self._loop.call_later(_ATTACH_SECONDS, late)

    def _create(self, client: Client, request: CreateContainer, task: Task, reply: Reply) -> None:
        member = task.member
        if member.requested:
            client.creating = ""
            raise ContainerExistsError()
        member.requested = True
        member.place = request.place
        member.cgroups = tuple(request.cgroups)
        member.limit_mib = request.limit_mib
        member.pod_mib, member.passed = request.pod_mib, bool(request.passed)

        def created(answer: Done | Failed) -> None:
            if isinstance(answer, Done):
                member.created = True
                task.running = True
                networks.log_notes(answer)
                plan = self.life.plan
                answer = Done(
                    {
                        "notes": self.life.notes,
                        "hypervisor": plan.driver.name,
                        "accelerator": plan.machine.accelerator,
                    }
                )
            client.creating = ""
            reply(answer)
            if isinstance(answer, Done):
                self.life.vm.growth.demand.arm()
                find_sockets(self.life.vm, member, request.spec)
            else:
                self._delete(member.name, lambda: None)

        def make() -> None:
            make_in_guest(self.life, self._tree, self.members.values(), request, task, created)

        def again() -> None:
            try:
                make()
            except (RunvmError, OSError) as error:
                created(Failed(words(error)))

        if not self.life.initialized:
            self.life.creations[member.name] = VmCreation(again, lambda reason: created(Failed(reason)))
        try:
            make()
        except VmmError as error:
            if self.life.initialized or not self.life.fail(str(error)):
                raise

    def _exec(self, request: ExecProcess, task: Task, reply: Reply) -> None:
        member = self._member(request.container)
        if not member.alive:
            raise RunvmError("cannot exec in a stopped container")
        task.outside = request.outside

        def entered(answer: Done | Failed) -> None:
            if isinstance(answer, Done):
                task.running = True
                if task.shim is None:  # it died meanwhile
                    self._kill(task)
            reply(answer)
            if isinstance(answer, Failed):
                self._forget(task)

        size, process = (request.rows, request.columns), request.process
        message = messages.Exec(
            member.name, task.channel, process, *size, request.passed, request.cgroup, request.outside
        )
        self.life.vm.agent.ask(message, entered)

    # --- ending

    def before_restart(self) -> None:
        """The VM is going to be started once more: what it was shown of the containers' files goes."""
        for member in self.members.values():
            self._tree.remove(member.place)

    def end_if_empty(self) -> None:
        """End a VM to which no container has come."""
        if not self.members:
            self.life.end("no container came")

    def close(self) -> None:
        """Close every shim's connection."""
        for task in list(self._tasks.values()):
            if task.shim is not None:
                task.shim.close()

    def _delete(self, name: str, done: Callable[[], None]) -> None:
        """Forget a container, killing it first if need be; *done* is called when nothing of it is left here."""
        member = self.members.get(name)
        if member is None:
            done()
            return
        member.deleting.append(done)
        if len(member.deleting) > 1:
            return
        if not member.alive or not member.created or self._alone(member):
            self._deleted(member)
            return
        self.life.vm.agent.ask(Signal(name, member.tasks[INIT].channel, int(signal.SIGKILL), True), _ignore)
        self._give_up_later(member)

    def _give_up_later(self, member: Member, *, after_checkpoint: bool = False) -> None:
        """If a killed container doesn't end, end its VM where it is alone there, else only what we know of it. With
        *after_checkpoint* not while a checkpoint is being taken, for the guest hasn't heard of the kill then."""

        def late() -> None:
            if after_checkpoint and self.life.vm.agent.holding:
                self._give_up_later(member, after_checkpoint=True)
            elif self.members.get(member.name) is member and member.alive:
                log.warning(f"container {member.name} did not end {_KILL_SECONDS:.0f} s after it was killed")
                if self._alone(member):
                    self.life.end("its only container does not end")
                self._deleted(member)

        self._loop.call_later(_KILL_SECONDS, late)

    def _deleted(self, member: Member) -> None:
        if self.members.pop(member.name, None) is None:
            return
        if member.notifier is not None:
            member.notifier.close()
        self.life.vm.socket_directories.remove(member.name)
        if member.sockets is not None:
            member.sockets.close()
        for task in list(member.tasks.values()):
            self._tasks.pop(task.channel, None)
            if task.shim is not None:
                task.shim.close()
        self.life.creations.pop(member.name, None)
        if self.members:
            self.life.vm.agent.ask(messages.Remove(member.name), lambda answer: self._removed(member))
            return
        self.life.vm.networks.leave(member.name)
        # the VM ends, and everything with it: no need to take it apart
        self.life.end("its last container has gone")
        self._finish_delete(member)

    def _removed(self, member: Member) -> None:
        self.life.vm.networks.leave(member.name)
        self._tree.remove(member.place)
        self._finish_delete(member)

    def _finish_delete(self, member: Member) -> None:
        for done in member.deleting:
            done()
        member.deleting = []

    def _alone(self, member: Member) -> bool:
        return all(other is member or not other.alive for other in self.members.values())

    def _member(self, name: str) -> Member:
        member = self.members.get(name)
        if member is None:
            raise RunvmError("container not running")
        return member

    def _kill(self, task: Task) -> None:
        self.life.vm.agent.ask(Signal(task.member.name, task.channel, int(signal.SIGKILL), False), _ignore)

    def _forget(self, task: Task) -> None:
        self._tasks.pop(task.channel, None)
        if task.key != INIT:
            task.member.tasks.pop(task.key, None)
        self._end_if_flushed()

    def _end_if_flushed(self) -> None:
        """End the VM once no container lives and each shim has taken its last output and its exit code."""
        if any(member.alive for member in self.members.values()):
            return
        if not any(task.shim is not None for task in self._tasks.values()):
            self.life.end("its last container has ended")
