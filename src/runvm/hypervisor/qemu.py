"""QEMU as the hypervisor: its command line as a pure function, its launch in a jail, its devices by QMP."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from runvm.errors import HostError, VmmError
from runvm.hypervisor import jail
from runvm.hypervisor.driver import Endpoints, Machine
from runvm.hypervisor.qmp import Qmp
from runvm.linux import process
from runvm.log import log
from runvm.protocol.interfaces import card_mac

if TYPE_CHECKING:
    from runvm.config import Config

_PROGRAM = "qemu-system-x86_64"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_DATA = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/ipxe")
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/libexec/qemu")
PORTS = 8
"""Empty PCIe root ports: one for the share, the others for further NICs."""
_MOST_WRITTEN = 64 << 20
"""Bytes of a file that QEMU may write: its log, or a template's device state; its memory isn't written but mapped."""
TRANSLATION_MIB = 64
"""Room for translated code under emulation; QEMU's own default is 1 GiB, which a long-lived VM would come to fill."""
_KERNEL_ARGS = (
    "console=ttyS0 quiet loglevel=4 reboot=t panic=-1 rcupdate.rcu_expedited=1 cryptomgr.notests net.ifnames=0"
    # on a busy host an emulated timer loses ticks, and the kernel's test of it ends in a guest that hangs
    " no_timer_check"
    # what virtio-mem brings is put to use by itself
    " memhp_default_state=online"
    # a kernel that has lost its way ends, and the containers with it: half of one leaves processes that never end
    " oops=panic"
    # virtio needs no bounce buffers, which would take 64 MiB
    " swiotlb=noforce"
)


def arguments(machine: Machine, fds: dict[str, int], *, program: str, restore: bool) -> list[str]:
    """QEMU's argv for *machine*; *fds* are the descriptors qmp, agent, console and tap."""
    accelerator = "kvm" if machine.accelerator == "kvm" else f"tcg,thread=multi,tb-size={TRANSLATION_MIB}"
    most = machine.most_vcpus
    argv = [
        program, "-name", "runvm", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-S",  # noqa: E501
        "-sandbox", _SANDBOX,
        "-machine", "q35,usb=off,vmport=off,smm=off,graphics=off,hpet=off,memory-backend=ram",
        "-accel", accelerator,
        "-cpu", "host" if machine.accelerator == "kvm" else "max,-erms,-fsrm",
        "-smp", f"{machine.vcpus},sockets=1,cores={most},threads=1,maxcpus={most}",
        "-m", f"{machine.memory_mib}M,maxmem={machine.memory_mib + machine.growth_mib}M",
        "-object", f"memory-backend-file,id=ram,size={machine.memory_mib}M,mem-path=/ram,share=on",
        "-object", f"memory-backend-file,id=more,size={machine.growth_mib}M,mem-path=/more,share=on",
        "-device", "virtio-mem-pci,id=growth,memdev=more,requested-size=0,disable-legacy=on",
        "-chardev", f"socket,id=qmp,fd={fds['qmp']}", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=console,fd={fds['console']}", "-serial", "chardev:console",
        "-device", "virtio-serial-pci,id=serial,max_ports=2",
        "-chardev", f"socket,id=agent,fd={fds['agent']}",
        "-device", "virtserialport,chardev=agent,name=runvm.agent,nr=1",
        "-netdev", f"tap,id=nic0,fd={fds['tap']}",
        "-device", f"virtio-net-pci,id=nic0,netdev=nic0,mac={card_mac(0)},romfile=,disable-legacy=on",
        "-device", "virtio-balloon-pci,free-page-reporting=on,disable-legacy=on",
        "-device", "vmgenid,guid=auto",
    ]  # fmt: skip
    for number in range(PORTS):
        argv += ["-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1}"]
    if restore:
        argv += ["-incoming", "defer"]
    else:
        argv += ["-kernel", machine.kernel, "-initrd", machine.initramfs, "-append", machine.cmdline]
    return argv


class Qemu:
    """The built-in driver."""

    name = "qemu"
    kernel_args = _KERNEL_ARGS
    can_snapshot = True

    def __init__(self, config: Config) -> None:
        self._config = config

    def program(self) -> str:
        """QEMU's path. Raises HostError where it isn't installed."""
        if self._config.qemu:
            return self._config.qemu
        # not the caller's PATH alone: engines call without one
        for directory in [*os.environ.get("PATH", "").split(":"), "/usr/local/bin", "/usr/bin"]:
            path = f"{directory}/{_PROGRAM}"
            if directory.startswith("/") and os.access(path, os.X_OK):
                return path
        raise HostError(f"{_PROGRAM} isn't installed", do="apt-get install qemu-system-x86")

    def version_key(self) -> str:
        """The program's path, size and time: a new build has another."""
        program = self.program()
        try:
            status = os.stat(program)
        except OSError as error:
            raise HostError(f"{program}: {error.strerror}", do="set 'qemu' in the configuration") from error
        return f"{program}:{status.st_size}:{status.st_mtime_ns}"

    def hardware(self, machine: Machine) -> str:
        """QEMU's argv, apart from the numbers of descriptors."""
        return " ".join(
            arguments(machine, dict.fromkeys(("qmp", "agent", "console", "tap"), 0), program="", restore=True)
        )

    def accelerator(self) -> str:
        """The configured one, or with 'auto' KVM where a guest really boots with it."""
        if self._config.accelerator != "auto":
            return self._config.accelerator
        from runvm.hypervisor import kvm

        return "kvm" if kvm.works(self._config) else "tcg"

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
        except BaseException:
            vm.kill()
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
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_WRITTEN, _MOST_WRITTEN))
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
            raise VmmError("QEMU couldn't take or write the template's device state")


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

    def plug_nic(self, index: int, tap: int, mac: str, *, deadline: float) -> None:
        """See Vm.plug_nic. Raises VmmError where no port is left."""
        if not 1 <= index < PORTS:
            raise VmmError(f"a virtual machine has at most {PORTS} network interfaces")
        name = f"nic{index}"
        self.qmp.run("getfd", {"fdname": name}, fd=tap, deadline=deadline)
        self.qmp.run("netdev_add", {"type": "tap", "id": name, "fd": name}, deadline=deadline)
        device = {
            "driver": "virtio-net-pci",
            "id": name,
            "netdev": name,
            "mac": mac,
            "bus": f"port{index}",
            "romfile": "",
        }
        self.qmp.run("device_add", device, deadline=deadline)

    def grow(self, mib: int, *, deadline: float) -> None:
        """See Vm.grow: virtio-mem plugs and unplugs in blocks while the guest runs."""
        size = {"path": "growth", "property": "requested-size", "value": mib << 20}
        self.qmp.run("qom-set", size, deadline=deadline)

    def plug_vcpus(self, count: int, *, deadline: float) -> None:
        """See Vm.plug_vcpus."""
        slots = self.qmp.run("query-hotpluggable-cpus", deadline=deadline)
        free = [slot for slot in slots if "qom-path" not in slot]
        free.sort(key=lambda slot: int(slot["props"]["core-id"]))
        for slot in free[: max(0, count - (len(slots) - len(free)))]:
            device = {"driver": slot["type"], "id": f"vcpu{slot['props']['core-id']}", **slot["props"]}
            self.qmp.run("device_add", device, deadline=deadline)

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

    def kill(self) -> None:
        """See Vm.kill. Raises DeadlineError if even SIGKILL doesn't end it within 10 s."""
        process.end_child(self.pid, "QEMU")
        self.qmp.sock.close()
