"""QEMU as the hypervisor: its launch in a jail, its devices by QMP."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from runvm.errors import HostError, KilledError, VmmError
from runvm.hypervisor import jail
from runvm.hypervisor.driver import Capabilities, Endpoints, Finding, Machine
from runvm.hypervisor.qemu.arguments import PORTS, arguments, cmdline
from runvm.hypervisor.qemu.boards import BOARDS
from runvm.hypervisor.qemu.monitor import Monitor, QmpCommand
from runvm.hypervisor.qemu.qmp import Qmp
from runvm.linux import architecture, process
from runvm.log import log

if TYPE_CHECKING:
    from typing import Any

    from runvm.config import Config
    from runvm.hypervisor.driver import Answered
    from runvm.linux.loop import Loop

_DATA = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/ipxe")
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/libexec/qemu")
_MAX_WRITTEN = 64 << 20
"""Bytes of a file that QEMU may write: its log, or a template's device state; its memory isn't written but mapped."""
_KERNEL_ARGS = (
    "quiet loglevel=4 panic=-1 rcupdate.rcu_expedited=1 cryptomgr.notests net.ifnames=0"
    # what virtio-mem brings is put to use by itself
    " memhp_default_state=online"
    # a kernel that has lost its way ends, and the containers with it: half of one leaves processes that never end
    " oops=panic"
    # virtio needs no bounce buffers, which would take 64 MiB
    " swiotlb=noforce"
)
"""On each board; those that one board needs are its own (boards.Board)."""


_CHECKPOINTS_FROM = 9
"""The QEMU from which on vhost-user-fs hands over the state of its daemon reliably (8.2 was the first that could)."""
_SAVE_SECONDS = 20.0
_SAVE_POLL = 0.004


class Qemu:
    """The built-in driver."""

    name = "qemu"
    kernel_args = _KERNEL_ARGS
    capabilities = Capabilities(
        snapshot=True,
        hotplug_share=True,
        hotplug_nic=True,
        hotplug_cpu=True,
        hotplug_memory=True,
        agent_transport="virtio-serial",
        kernel_format="bzImage",
        accelerators=("kvm", "tcg"),
        checkpoint=True,
        hot_reload=True,
        architectures=tuple(BOARDS),
    )

    def __init__(self, config: Config) -> None:
        self._config = config

    def program(self) -> str:
        """The path of QEMU for the architecture of the configuration. Raises HostError where it isn't installed."""
        arch = architecture.chosen(self._config.arch)
        if self._config.qemu and not architecture.is_foreign(arch):
            from runvm.linux import command

            return command.named(self._config.qemu, "qemu")
        if arch not in BOARDS:
            raise HostError(f"runvm doesn't run on {arch}", do=f"it does on {', '.join(BOARDS)}")
        board = BOARDS[arch]
        # not the caller's PATH alone: engines call without one
        for directory in [*os.environ.get("PATH", "").split(":"), "/usr/local/bin", "/usr/bin"]:
            path = f"{directory}/{board.program}"
            if directory.startswith("/") and os.access(path, os.X_OK):
                return path
        raise HostError(f"{board.program} isn't installed", do=f"apt-get install {board.package}")

    def version_key(self) -> str:
        """The program's path, size and time: a new build has another."""
        program = self.program()
        status = os.stat(program)
        return f"{program}:{status.st_size}:{status.st_mtime_ns}"

    def hardware(self, machine: Machine) -> str:
        """QEMU's argv, apart from the numbers of descriptors, and what the guest's kernel was told."""
        fds = dict.fromkeys(("qmp", "agent", "console", "tap"), 0)
        return " ".join([*arguments(machine, fds, program="", restore=True), cmdline(machine)])

    def release(self) -> str:
        """See Driver.release."""
        from runvm.linux import command

        return command.version(self.program()).partition("version ")[2].partition("\n")[0].strip()

    def checkpoint_lacks(self) -> str:
        """See Driver.checkpoint_lacks: older ones don't migrate the share's device."""
        release = self.release()
        major = release.partition(".")[0]
        if major.isdigit() and int(major) >= _CHECKPOINTS_FROM:
            return ""
        return f"QEMU {_CHECKPOINTS_FROM}.0 or later, and {self.program()} is {release or 'of unknown version'}"

    def check(self) -> list[Finding]:
        """See Driver.check."""
        from runvm.hypervisor.qemu import check

        return check.findings(self.program, BOARDS[architecture.chosen(self._config.arch)])

    def launch(
        self,
        machine: Machine,
        endpoints: Endpoints,
        *,
        jail: str,
        state: int = -1,
        ram_ready: Callable[[], None],
        deadline: float,
    ) -> QemuVm:
        """See Driver.launch."""
        ours, theirs = socket.socketpair()
        fds = {"qmp": theirs.fileno(), "agent": endpoints.agent, "console": endpoints.console, "tap": endpoints.tap}
        if endpoints.share >= 0:
            fds["share"] = endpoints.share
        program = self.program()
        argv = arguments(machine, fds, program=program, restore=state >= 0)
        pid = _spawn(argv, tuple(fds.values()), machine, directory=jail, boots=state < 0)
        theirs.close()
        vm = QemuVm(pid, Qmp(ours))
        try:
            vm.qmp.negotiate(deadline=deadline)
            log.debug("supervisor: QEMU answers")
            # RAM is the shared file, not part of the state; a clone must not announce the template's MAC on its network
            wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
            vm.qmp.send("migrate-set-capabilities", {"capabilities": wanted})
            vm.qmp.send("migrate-set-parameters", {"announce-rounds": 0})
            for command in ("migrate-set-capabilities", "migrate-set-parameters"):
                vm.qmp.answer(command, deadline=deadline)
            if state >= 0:
                ram_ready()
                vm.qmp.send("getfd", {"fdname": "state"}, fd=state)
                vm.qmp.send("migrate-incoming", {"uri": "fd:state"})
                for command in ("getfd", "migrate-incoming"):
                    vm.qmp.answer(command, deadline=deadline)
                _await_migrated(vm.qmp, deadline)
        except BaseException as error:
            killed = isinstance(error, VmmError) and process.was_killed(pid)
            vm.kill()
            if killed:
                raise KilledError(f"{error}: somebody, or the kernel for want of memory, has killed it") from error
            raise
        return vm


def _spawn(argv: list[str], fds: tuple[int, ...], machine: Machine, *, directory: str, boots: bool) -> int:
    """Fork, confine, exec. Its stderr goes to the file `vmm.log` beside the jail."""
    parent = os.getpid()
    devices = ["/dev/kvm"] if machine.accelerator == "kvm" else []
    uid = jail.user_id(devices)
    log = os.open(f"{os.path.dirname(directory)}/vmm.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    visible = [path for path in (*_LIBRARIES, *_DATA, argv[0]) if os.path.exists(path)]
    if boots:
        visible += [machine.kernel, machine.initramfs]

    def child() -> None:
        import resource  # while the host's files are there

        os.setsid()
        process.redirect(log)
        for fd in fds:
            os.set_inheritable(fd, True)
        process.close_above(2, fds)
        jail.enter(directory, read_only=visible, devices=devices, uid=uid)
        process.die_with_parent(parent)
        process.reset_signals()
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_WRITTEN, _MAX_WRITTEN))
        os.execve(argv[0], argv, {"PATH": "/usr/bin"})

    try:
        for name in ("ram", "more"):
            os.chown(f"{directory}/{name}", uid, uid)
        return process.fork(child)
    finally:
        os.close(log)


def _await_migrated(qmp: Qmp, deadline: float) -> None:
    while True:
        status = qmp.wait_event("MIGRATION", deadline=deadline).get("status")
        if status == "completed":
            return
        if status == "failed":
            raise VmmError("QEMU couldn't take or write the device state")


class QemuVm:
    """A running QEMU; its parent is the process that launched it."""

    def __init__(self, pid: int, qmp: Qmp) -> None:
        self.pid = pid
        self.qmp = qmp

    def plug_share(self, share: socket.socket, tag: str, *, deadline: float) -> None:
        """See Vm.plug_share."""
        self.qmp.send("getfd", {"fdname": "share"}, fd=share.fileno())
        backend = {"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "share"}}, "server": False}}
        self.qmp.send("chardev-add", {"id": "share", "backend": backend})
        device = {"driver": "vhost-user-fs-pci", "id": "share", "chardev": "share", "tag": tag, "bus": "port0"}
        self.qmp.send("device_add", device)
        for command in ("getfd", "chardev-add", "device_add"):
            self.qmp.answer(command, deadline=deadline)

    def attach(self, loop: Loop) -> None:
        """See Vm.attach."""
        self._loop = loop
        self._monitor = Monitor(loop, self.qmp)

    def plug_nic(self, index: int, tap: int, mac: str, answered: Answered) -> None:
        """See Vm.plug_nic. Raises VmmError where no port is left."""
        if not 1 <= index < PORTS:
            raise VmmError(f"a virtual machine has at most {PORTS} network interfaces")
        name = f"nic{index}"
        device = {
            "driver": "virtio-net-pci",
            "id": name,
            "netdev": name,
            "mac": mac,
            "bus": f"port{index}",
            "romfile": "",
        }
        self._monitor.run(
            [
                QmpCommand("getfd", {"fdname": name}, tap),
                QmpCommand("netdev_add", {"type": "tap", "id": name, "fd": name}),
                QmpCommand("device_add", device),
            ],
            lambda results, error: answered(error),
        )

    def grow(self, mib: int, answered: Answered) -> None:
        """See Vm.grow: virtio-mem plugs and unplugs in blocks while the guest runs."""
        size = {"path": "growth", "property": "requested-size", "value": mib << 20}
        self._monitor.run([QmpCommand("qom-set", size)], lambda results, error: answered(error))

    def plug_vcpus(self, count: int, answered: Answered) -> None:
        """See Vm.plug_vcpus: they are there, and wait to be taken into use (arguments)."""
        answered(None)

    def resume(self, *, deadline: float) -> None:
        """See Vm.resume."""
        self.qmp.run("cont", deadline=deadline)

    def pause(self, *, deadline: float) -> None:
        """See Vm.pause."""
        self.qmp.run("stop", deadline=deadline)

    def snapshot(self, path: str, *, deadline: float) -> None:
        """See Vm.snapshot: migrate with x-ignore-shared, so that only device state is written (QEMU's migration
        docs)."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self.qmp.run("getfd", {"fdname": "state"}, fd=fd, deadline=deadline)
            self.qmp.run("migrate", {"uri": "fd:state"}, deadline=deadline)
            _await_migrated(self.qmp, deadline)
            os.fsync(fd)
        except VmmError as error:
            if os.fstatvfs(fd).f_bavail == 0:  # QEMU doesn't say
                raise VmmError(f"{error.message}: no space left on device") from error
            raise
        finally:
            os.close(fd)

    def freeze(self, answered: Answered) -> None:
        """See Vm.freeze."""
        self._monitor.run([QmpCommand("stop")], lambda results, error: answered(error))

    def thaw(self, answered: Answered) -> None:
        """See Vm.thaw."""
        self._monitor.run([QmpCommand("cont")], lambda results, error: answered(error))

    def save(self, state: int, answered: Answered) -> None:
        """See Vm.save: as snapshot(), but the end is asked for, since events aren't waited for any more."""
        deadline = time.monotonic() + _SAVE_SECONDS

        def look(results: list[Any], error: VmmError | None) -> None:
            said = results[-1] if results else {}
            status = said.get("status", "") if isinstance(said, dict) else ""
            if error is None and status == "failed":
                error = VmmError(f"QEMU couldn't write the device state: {said.get('error-desc', 'no reason given')}")
            if error is None and time.monotonic() > deadline:
                error = VmmError(f"timed out after {_SAVE_SECONDS:.0f} s waiting for QEMU to write the device state")
            if error is not None or status == "completed":
                answered(error)
            else:
                self._loop.call_later(_SAVE_POLL, lambda: self._monitor.run([QmpCommand("query-migrate")], look))

        begin = [QmpCommand("getfd", {"fdname": "state"}, state), QmpCommand("migrate", {"uri": "fd:state"})]
        self._monitor.run(begin, look)

    def kill(self) -> None:
        """See Vm.kill. Raises DeadlineError if even SIGKILL doesn't end it within 10 s."""
        process.end_child(self.pid, "QEMU")
        self.qmp.sock.close()
