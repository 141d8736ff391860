"""The floor: the smallest program that does with bare QEMU what runvm does. The other side of most ratios.

Its guest is runvm's own image with another /init: a busybox shell that reads lines from a virtio port, runs each and
answers with its exit code. There is no agent, no crun, no container, no jail, no namespace and cgroup on the host,
nothing on disk. What stays is what bare QEMU can't do without: a copy of the template's memory (virtiofsd needs guest
RAM shared, so a private mapping of the template won't do), QEMU with the same machine and devices, the restore,
virtiofsd, the share's device, the guest's mount of it. Python is warm: its start isn't in the floor's times.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from runvm.guest import cpio, image
from runvm.hypervisor import boot, drivers, jail, proof, ram
from runvm.hypervisor.qemu.arguments import arguments
from runvm.hypervisor.qemu.driver import QemuVm
from runvm.hypervisor.qemu.qmp import Qmp
from runvm.linux import process, syscalls
from runvm.network import tap
from runvm.sandbox import sizes
from runvm.shares import virtiofs

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Machine

_SECONDS = 120.0
_INIT = """#!/usr/bin/sh
# the floor's PID 1; the applets are busybox's own, which the shell starts by /proc/self/exe
/usr/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /run
mount -t cgroup2 none /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo +$controller >/sys/fs/cgroup/cgroup.subtree_control
done
mkdir -p /dev/pts /dev/shm /dev/mqueue /run/share
mount -t devpts devpts /dev/pts
mount -t mqueue mqueue /dev/mqueue
/usr/sbin/modprobe -a virtio_pci virtio_console virtio_net virtiofs overlay virtio_balloon virtio_rng
while [ ! -e /sys/class/virtio-ports/vport*p2 ]; do sleep 0.01; done
for port in /sys/class/virtio-ports/*; do ln -s /dev/${port##*/} /run/$(cat $port/name); done
# crun's pivot_root(2) refuses the kernel's first root: a bind of it takes its place
mount --rbind / /mnt
cd /mnt
mount --move . /
exec chroot . /usr/bin/sh -c '
    exec 3<>/run/control
    echo 0 >&3
    while read -r line <&3; do
        eval "$line"
        echo $? >&3
    done'
"""
MOUNT = "until mount -t virtiofs runvm /run/share 2>/dev/null; do :; done"
"""The guest's line that mounts the share: its device may not be there yet."""


class Lines(NamedTuple):
    """The host's ends of a VM's sockets: QEMU's monitor, the shell, the port for bulk data, the console."""

    qmp: socket.socket
    control: socket.socket
    data: socket.socket
    console: socket.socket


class FloorVm:
    """A running VM of the floor; `close` ends it."""

    def __init__(self, vm: QemuVm, lines: Lines, share: virtiofs.Daemon | None) -> None:
        self.vm = vm
        self.lines = lines
        self.share = share
        self._buffer = b""

    def send(self, line: str) -> None:
        """A line for the guest's shell, whose answer must be taken by answer()."""
        self.lines.control.sendall(line.encode() + b"\n")

    def answer(self, timeout: float = _SECONDS) -> int:
        """The exit code of the oldest line. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            self.lines.control.settimeout(max(0.001, deadline - time.monotonic()))
            self._buffer += self.lines.control.recv(4096)
        code, self._buffer = self._buffer.split(b"\n", 1)
        return int(code)

    def run(self, line: str, timeout: float = _SECONDS) -> None:
        """Run a line that must succeed."""
        self.send(line)
        code = self.answer(timeout)
        if code != 0:
            raise RuntimeError(f"the floor's guest ended '{line}' with {code}: {self.words()}")

    def words(self) -> str:
        """What its console has said."""
        self.lines.console.setblocking(False)
        try:
            return self.lines.console.recv(65536).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """End QEMU and virtiofsd."""
        self.vm.kill()
        if self.share is not None:
            self.share.kill()
        for line in self.lines:
            line.close()


class Floor:
    """Makes its template in *directory* once, then starts VMs of it."""

    def __init__(self, config: Config, directory: str) -> None:
        self.config = config
        self.directory = directory
        os.makedirs(f"{directory}/init")
        with open(f"{directory}/init/init", "w") as file:
            file.write(_INIT)
        os.chmod(f"{directory}/init/init", 0o755)
        guest = image.resolve(config)
        with open(f"{directory}/initramfs", "wb") as out:
            with open(guest.initramfs, "rb") as file:
                out.write(file.read())
            cpio.write(f"{directory}/init", out)  # a later archive's files replace those of the first
        chosen = drivers.load(config)
        self.machine: Machine = boot.machine_for(
            config,
            chosen,
            guest._replace(initramfs=f"{directory}/initramfs"),
            vcpus=sizes.vcpus(config, {}),
            memory_mib=sizes.base_mib(config, {}),
            accelerator=proof.accelerator(config, chosen),
        )
        self._program = config.qemu or "/usr/bin/qemu-system-x86_64"
        self._tap = tap.scratch_tap()  # QEMU wants one for its NIC; the same for each VM, as nothing uses it
        self._tmpfs = f"{directory}/memory"
        jail.prepare(self._tmpfs)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmount what the memory of its VMs is in."""
        syscalls.unmount(self._tmpfs, syscalls.MNT_DETACH)

    def _make(self) -> None:
        memory = self._memory()
        vm = self._launch(memory, tap=self._tap)
        try:
            deadline = time.monotonic() + _SECONDS
            vm.vm.resume(deadline=deadline)
            if vm.answer() != 0:
                raise RuntimeError("the floor's guest doesn't boot")
            time.sleep(0.3)
            vm.vm.pause(deadline=deadline)
            vm.vm.snapshot(f"{self.directory}/state", deadline=deadline)
            ram.save(f"/proc/self/fd/{memory[0]}", f"{self.directory}/ram")
        except TimeoutError:
            raise RuntimeError(f"the floor's guest doesn't boot: {vm.words()}") from None
        finally:
            vm.close()
            for fd in memory:
                os.close(fd)

    def _memory(self) -> tuple[int, int]:
        """The files `ram` and `more` of a VM."""
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        memory = os.open(self._tmpfs, flags), os.open(self._tmpfs, flags)
        for fd, mib in zip(memory, (self.machine.memory_mib, self.machine.growth_mib), strict=True):
            os.ftruncate(fd, mib << 20)
        return memory

    def _copy(self, target: int) -> None:
        source = f"{self.directory}/ram"
        ram.copy_sparse(source, target, lambda allowed: jail.allow_huge_pages(self._tmpfs, allowed))

    def start(self, share: str, *, first: str, tap: int = -1) -> FloorVm:
        """A VM with the directory *share* plugged in; its shell has been sent *first*, a line whose answer is due."""
        memory = self._memory()
        try:
            copier = process.fork(lambda: self._copy(memory[0]))
            daemon = virtiofs.serve(self.config, share, log=f"{self.directory}/virtiofsd.log")
            vm = self._launch(memory, copier=copier, tap=self._tap if tap < 0 else tap)
        finally:
            for fd in memory:
                os.close(fd)
        vm.share = daemon
        deadline = time.monotonic() + _SECONDS
        vm.vm.plug_share(daemon.socket, "runvm", deadline=deadline)
        vm.send(first)
        vm.vm.resume(deadline=deadline)
        return vm

    def run_once(self, share: str, line: str) -> None:
        """What `runvm run` does: a VM, the share, *line* run in it, the end."""
        vm = self.start(share, first=f"{MOUNT}; {line}")
        try:
            if vm.answer() != 0:
                raise RuntimeError(f"the floor's guest fails: {line}: {vm.words()}")
        finally:
            vm.close()

    def _launch(self, memory: tuple[int, int], *, copier: int = 0, tap: int) -> FloorVm:
        """QEMU, paused: to boot, or where *copier* (the process that copies its memory) is given, restored."""
        restore = copier > 0
        pairs = [socket.socketpair() for _ in range(4)]
        lines = Lines(*(ours for ours, _ in pairs))
        qmp, control, data, console = (theirs for _, theirs in pairs)
        state = os.open(f"{self.directory}/state", os.O_RDONLY | os.O_CLOEXEC) if restore else -1
        named = {"qmp": qmp.fileno(), "agent": control.fileno(), "console": console.fileno(), "tap": tap}
        argv = arguments(self.machine, named, program=self._program, restore=restore)
        argv = [self._adapted(word, memory) for word in argv]
        sandbox = argv.index("-sandbox")
        del argv[sandbox : sandbox + 2]
        argv += [
            "-chardev",
            f"socket,id=data,fd={data.fileno()}",
            "-device",
            "virtserialport,chardev=data,name=data,nr=2",
        ]
        keep = (*named.values(), data.fileno(), *memory)
        parent = os.getpid()

        def child() -> None:
            log = os.open(f"{self.directory}/qemu.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            process.redirect(log)
            for fd in keep:
                os.set_inheritable(fd, True)
            process.close_above(2, keep)
            process.reset_signals()
            process.die_with_parent(parent)
            os.execv(argv[0], argv)

        vm = QemuVm(process.fork(child), Qmp(lines.qmp))
        for _, theirs in pairs:
            theirs.close()
        deadline = time.monotonic() + _SECONDS
        try:
            vm.qmp.negotiate(deadline=deadline)
            wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
            vm.qmp.send("migrate-set-capabilities", {"capabilities": wanted})
            if restore:
                if process.wait_child(copier, deadline=deadline) != 0:
                    raise RuntimeError("the floor's template can't be copied")
                vm.qmp.send("getfd", {"fdname": "state"}, fd=state)
                vm.qmp.send("migrate-incoming", {"uri": "fd:state"})
            for command in ("capabilities", *(("getfd", "migrate-incoming") if restore else ())):
                vm.qmp.answer(command, deadline=deadline)
            while restore:
                status = vm.qmp.wait_event("MIGRATION", deadline=deadline).get("status")
                if status == "failed":
                    raise RuntimeError(f"the floor's template can't be restored: {self.directory}/qemu.log")
                if status == "completed":
                    break
        except BaseException:
            os.kill(vm.pid, signal.SIGKILL)
            raise
        finally:
            if state >= 0:
                os.close(state)
        return FloorVm(vm, lines, None)

    def _adapted(self, word: str, memory: tuple[int, int]) -> str:
        """One of runvm's own arguments: the memory is descriptors, since there is no jail; one port more."""
        for name, fd in zip(("ram", "more"), memory, strict=True):
            word = word.replace(f"mem-path=/{name}", f"mem-path=/dev/fd/{fd}")
        word = word.replace("max_ports=2", "max_ports=3")
        return word.replace("name=runvm.agent,", "name=control,")
