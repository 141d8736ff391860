"""A checkpoint as the supervisor takes it: the command is told where the memory is, and copies it; then the container
stands still, the VM is stopped and its device state written; the command copies what has changed in the memory, and
says whether the VM goes on. See docs/design.md, Checkpoint.

Of the bytes under way at that moment, those toward the host have come before the guest's answer to Quiesce, and the
shim goes on writing them. Those toward the guest are held here: a VM that goes on gets them, and so does a restored
one.
"""

from __future__ import annotations

import base64
import os
import signal
import time
from typing import TYPE_CHECKING

from runvm.errors import RunvmError, UnsupportedError, words
from runvm.linux import process, sockets
from runvm.log import log
from runvm.protocol import messages
from runvm.protocol.frames import MESSAGE, STDIN
from runvm.protocol.messages import Done, Exited, Failed
from runvm.records import NamedTuple
from runvm.sandbox.members import INIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runvm.linux.loop import Loop
    from runvm.sandbox.clients import Client, Reply
    from runvm.sandbox.keeping import Keeper
    from runvm.sandbox.members import Member, Task

_QUIET_SECONDS = 10.0
"""How long it may take until nothing is under way: execs that are killed, answers of the guest, a shim."""
_QUIESCE_SECONDS = 20.0
_STOPPED_SECONDS = 10.0
"""How long a command may be stopped itself (Ctrl-Z) while it keeps a container still."""
_STATE = "checkpoint.state"
_SHIM_REQUEST = 1


class MemoryFiles(NamedTuple):
    """FindMemory's answer: the files that are the VM's memory, in the mount namespace of process *pid*."""

    pid: int
    ram: str
    more: str


class Stopped(NamedTuple):
    """What the command is told of a VM that stands still, in Checkpoint's answer.

    *state* is a file in the mount namespace of process *pid*; *machine* are the fields of
    hypervisor.driver.Machine, with the virtual CPUs of now; *grown_mib* what it has grown by,
    *extra_mib* of that by need, for which the guest may have *watched*. *channel* is the
    container's own, *network* the number of its network namespace, *place* its directory in the share, *layout* where
    the names there lead. *input* is what was on its way to the container, in base64; with *updated* its limits
    aren't those of its config.json any more; *execs* how many of its processes
    were ended.
    """

    pid: int
    state: str
    machine: dict[str, Any]
    grown_mib: int
    extra_mib: int
    watched: bool
    channel: int
    network: int
    place: str
    layout: dict[str, str]
    input: str
    input_ended: bool
    updated: bool
    execs: int


class Checkpointing:
    """Of the VM whose containers *keeper* has; one checkpoint at a time."""

    def __init__(self, loop: Loop, keeper: Keeper, layout: Callable[[str], dict[str, str]]) -> None:
        self._loop = loop
        self._keeper = keeper
        self._layout = layout
        self._under_way: _Checkpoint | None = None
        self._given_up = ""
        """Why the last one has failed."""

    def find_memory(self, request: messages.FindMemory, reply: Reply) -> None:
        """Raises UnsupportedError, RunvmError."""
        member = self._checked(request.container)
        if request.spare_execs and _execs(member):
            raise RunvmError(f"processes of exec run in container {request.container}")
        jail = f"{self._keeper.life.plan.sandbox.directory}/jail"
        reply(Done(MemoryFiles(os.getpid(), f"{jail}/ram", f"{jail}/more")._asdict()))

    def begin(self, client: Client, request: messages.Checkpoint, reply: Reply) -> None:
        """Stop the VM and write its state. Raises UnsupportedError, RunvmError."""
        member = self._checked(request.container)
        self._under_way = _Checkpoint(self._loop, self._keeper, self._layout, member, client, reply, self._forget)
        self._under_way.end_execs(spare=request.spare_execs)

    def end(self, client: Client, request: messages.EndCheckpoint, reply: Reply) -> None:
        """The command has copied what it needs."""
        if self._under_way is None or self._under_way.client is not client:
            raise RunvmError(self._given_up or "no checkpoint is being taken")
        self._under_way.end(keep=request.keep, reply=reply)

    def client_gone(self, client: Client) -> None:
        """The command may have been killed: the VM goes on."""
        if self._under_way is not None and self._under_way.client is client:
            self._under_way.fail("the command has gone")

    def shim_answered(self, task: Task) -> None:
        """The shim reads no more input."""
        if self._under_way is not None:
            self._under_way.shim_answered(task)

    def _forget(self, reason: str) -> None:
        self._under_way = None
        self._given_up = reason

    def _checked(self, name: str) -> Member:
        if self._under_way is not None:
            raise RunvmError("another checkpoint of the container is being taken")
        members, vm = self._keeper.members, self._keeper.life.vm
        member = members.get(name)
        init = None if member is None else member.tasks.get(INIT)
        if member is None or init is None or not init.running or init.shim is None:
            raise RunvmError("container not running")
        if len(members) > 1:
            raise UnsupportedError(f"container {name} shares its virtual machine with others, and that is saved whole")
        if member.passed:
            raise UnsupportedError(f"container {name} was handed descriptors beyond stdio, which can't be restored")
        if member.notifier is not None:
            raise UnsupportedError(f"container {name} has a $NOTIFY_SOCKET of the host's, which can't be restored")
        if member.sockets is not None:
            raise UnsupportedError(f"container {name} has a socket of the host's mounted, which can't be restored")
        if error := _too_many_nics(name, vm.networks.nics):
            raise error
        return member


class _Checkpoint:
    """One, from the first request to the last; *ended* is called in the end, with the reason where it has failed."""

    def __init__(
        self,
        loop: Loop,
        keeper: Keeper,
        layout: Callable[[str], dict[str, str]],
        member: Member,
        client: Client,
        reply: Reply,
        ended: Callable[[str], None],
    ) -> None:
        self.client = client
        self._loop = loop
        self._keeper = keeper
        self._layout = layout
        self._vm = keeper.life.vm
        self._member = member
        self._init = member.tasks[INIT]
        self._reply: Reply | None = reply
        self._ended = ended
        self._failed = False
        self._closed = False
        self._saving = False
        self._shim_quiet = False
        self._quiesced = False
        self._frozen = False
        self._spare = False
        self._killed: set[int] = set()
        self._execs = 0
        self._path = f"{keeper.life.plan.sandbox.directory}/{_STATE}"

    # --- step by step

    def end_execs(self, *, spare: bool) -> None:
        """What exec started isn't part of a checkpoint: nobody could take it up. With *spare*, wait for its end."""
        self._spare = spare
        self._when(self._execs_are_gone, self._quiet_shim, "the end of the processes that exec has started")

    def _execs_are_gone(self) -> bool:
        """Also those that have begun since this was asked last."""
        for task in () if self._spare else _execs(self._member):
            if task.channel not in self._killed:
                self._kill(task.channel)
        return not _execs(self._member)

    def _kill(self, channel: int) -> None:
        self._killed.add(channel)

        def told(answer: Done | Failed) -> None:
            if isinstance(answer, Failed):  # it isn't there yet
                self._killed.discard(channel)
            else:
                self._execs += 1

        self._vm.agent.ask(messages.Signal(self._member.name, channel, int(signal.SIGKILL), False), told)

    def _quiet_shim(self) -> None:
        self._tell_shim(messages.Quiesce(self._member.name))
        ready = lambda: self._execs_are_gone() and self._shim_quiet and not self._vm.agent.busy  # noqa: E731
        self._when(ready, self._quiesce, "the shim and the guest to come to rest")

    def shim_answered(self, task: Task) -> None:
        """It reads no more input, and all that it has read has come."""
        self._shim_quiet = self._shim_quiet or task is self._init

    def _quiesce(self) -> None:
        self._vm.agent.ask(messages.Quiesce(self._member.name), self._guest_quiet, timeout=_QUIESCE_SECONDS)
        self._vm.agent.hold()
        self._quiesced = True

    def _guest_quiet(self, answer: Done | Failed) -> None:
        if isinstance(answer, Failed):
            self.fail(f"the guest can't be stopped: {answer.error}")
        elif self._init.ended:
            self.fail("container not running")
        elif not self._failed:
            self._frozen = True
            self._vm.guest.vm.freeze(self._stopped)

    def _stopped(self, error: RunvmError | None) -> None:
        if self._gone_wrong(error):
            return
        try:
            state = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            self.fail(f"{self._path}: {problem.strerror}")
            return

        def saved(error: RunvmError | None) -> None:
            os.close(state)
            self._saving = False
            error = error or self._overtaken() or self._files_lost()
            if self._failed:
                self._go_on(Failed("the command has gone"))
            elif not self._gone_wrong(error):
                self._answer(Done(self._describe()._asdict()))
                self._watch_command()

        self._saving = True
        self._vm.daemon.listen()
        self._vm.guest.vm.save(state, saved)

    def _watch_command(self) -> None:
        """It lets the container go on, or end; but it may be stopped itself."""
        connection = self.client.connection
        pid = 0 if connection is None else sockets.peer_pid(connection.fd)
        since = time.monotonic()

        def look() -> None:
            nonlocal since
            if self._closed:
                return
            if not process.is_stopped(pid):
                since = time.monotonic()
            elif time.monotonic() - since > _STOPPED_SECONDS:
                self.fail(f"the container has gone on: the command was stopped for {_STOPPED_SECONDS:.0f} s")
                return
            self._loop.call_later(1.0, look)

        look()

    def _overtaken(self) -> RunvmError | None:
        """What has come about since the checkpoint was asked for."""
        if self._init.ended:
            return RunvmError("container not running")
        return _too_many_nics(self._member.name, self._vm.networks.nics)

    def _files_lost(self) -> RunvmError | None:
        """What a restore would fail for: files that are open, and in no directory any more."""
        lost = self._vm.daemon.lost()
        root = f"/containers/{self._member.place}/rootfs"
        paths = ", ".join(path.removeprefix(root) for path in lost[:5])
        return UnsupportedError(f"deleted files are open, which a restore couldn't find: {paths}") if lost else None

    def _describe(self) -> Stopped:
        life, channel = self._keeper.life, self._init.channel
        held = [payload for kind, to, payload in self._vm.agent.held if kind == STDIN and to == channel]
        return Stopped(
            pid=os.getpid(),
            state=self._path,
            machine=life.plan.machine._replace(vcpus=self._vm.growth.vcpus)._asdict(),
            grown_mib=self._vm.growth.grown_mib,
            extra_mib=self._vm.growth.demand.extra_mib,
            watched=self._vm.growth.demand.told,
            channel=channel,
            network=self._vm.networks.number_of(self._member.name),
            place=self._member.place,
            layout=self._layout(self._member.place),
            input=base64.b64encode(b"".join(held)).decode(),
            input_ended=b"" in held,
            updated=self._member.updated,
            execs=self._execs,
        )

    # --- the end

    def end(self, *, keep: bool, reply: Reply) -> None:
        """The VM goes on, or ends as by SIGKILL."""
        if not self._frozen or self._reply is not None:
            raise RunvmError("the virtual machine doesn't stand still yet")
        self._reply = reply
        if keep:
            self._go_on(Done({}))
            return
        self._closed = True
        self._ended("")
        self._keeper.guest_event(Exited(self._init.channel, 128 + signal.SIGKILL, signal.SIGKILL))
        self._answer(Done({}))

    def fail(self, reason: str) -> None:
        """Give up: all goes on as if nothing had been."""
        if not self._failed:
            self._failed = True
            if not self._saving:  # else as soon as that has ended: until then the VM can't go on
                self._go_on(Failed(reason))

    def _gone_wrong(self, error: RunvmError | None) -> bool:
        if error is not None:
            self.fail(words(error))
        return self._failed

    def _go_on(self, answer: Done | Failed) -> None:
        """Undo what has been done so far, the last first; then tell *answer*."""
        self._closed = True
        self._ended(answer.error if isinstance(answer, Failed) else "")
        self._remove_state()

        def thawed(error: RunvmError | None) -> None:
            if error is not None:
                self._keeper.life.end(f"the virtual machine doesn't go on after a checkpoint: {error}")
                return
            if self._quiesced:
                self._vm.agent.ask(messages.Unquiesce(), going, urgent=True)
                self._vm.agent.let_go()
            self._tell_shim(messages.Unquiesce())
            self._answer(answer)

        def going(unquiesced: Done | Failed) -> None:
            if isinstance(unquiesced, Failed):
                log.warning(f"checkpoint: {unquiesced.error}")
            self._keeper.life.check_clock()

        if self._frozen:
            self._vm.guest.vm.thaw(thawed)
        else:
            thawed(None)

    def _remove_state(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass

    def _answer(self, answer: Done | Failed) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply(answer)

    def _tell_shim(self, message: messages.Quiesce | messages.Unquiesce) -> None:
        if self._init.shim is not None:
            self._init.shim.send(MESSAGE, 0, messages.encode(message, _SHIM_REQUEST))

    def _when(self, ready: Callable[[], bool], then: Callable[[], None], what: str) -> None:
        """Go on as soon as *ready*; it is looked at often enough, for who waits is an answer away."""
        deadline = time.monotonic() + _QUIET_SECONDS

        def look() -> None:
            if self._failed:
                return
            if self._init.ended:
                self.fail("container not running")
            elif ready():
                then()
            elif time.monotonic() > deadline:
                self.fail(f"timed out after {_QUIET_SECONDS:.0f} s waiting for {what}")
            else:
                self._loop.call_later(0.005, look)

        look()


def _execs(member: Member) -> list[Task]:
    """What exec has started in the container and runs; not what that has left its output to."""
    return [task for key, task in member.tasks.items() if key != INIT and not task.ended]


def _too_many_nics(name: str, nics: int) -> UnsupportedError | None:
    """A virtual machine that is restored is made with one: a device state with more of them fits none."""
    if nics <= 1:
        return None
    return UnsupportedError(f"container {name} has had {nics} network interfaces, more than one")
