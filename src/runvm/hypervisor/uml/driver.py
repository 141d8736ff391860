"""User Mode Linux as the hypervisor: its launch in a jail, and the start of its kernel."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from runvm.errors import DeadlineError, UnsupportedError, VmmError
from runvm.hypervisor import jail
from runvm.hypervisor.driver import Capabilities, Endpoints, Finding, Machine
from runvm.hypervisor.uml import seccomp
from runvm.hypervisor.uml.arguments import KERNEL_ARGS, MEMORY, SHARE, arguments
from runvm.hypervisor.uml.share_relay import ShareRelay
from runvm.linux import process, syscalls
from runvm.log import log

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Answered
    from runvm.linux.loop import Loop

_DEVICES = ["/dev/null", "/dev/zero", "/dev/urandom"]
"""Without these it ends without an error message."""
_LIBRARIES = ("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6")
_PROC = ("/proc/cpuinfo",)


class Uml:
    """The built-in driver for hosts without KVM."""

    name = "uml"
    kernel_args = KERNEL_ARGS
    capabilities = Capabilities(
        snapshot=False,
        hotplug_share=True,
        hotplug_nic=True,
        hotplug_cpu=False,
        hotplug_memory=False,
        agent_transport="tty",
        kernel_format="uml",
        accelerators=("ptrace",),
        max_vcpus=1,
        nic_transport="packet",
        narrow_programs=False,
    )

    def __init__(self, config: Config) -> None:
        self._config = config

    def version_key(self) -> str:
        """The kernel itself: it is the VMM."""
        from runvm.guest import uml_kernel

        return uml_kernel.find(self._config).key

    def hardware(self, machine: Machine) -> str:
        """Nothing: there are no snapshots."""
        return ""

    def check(self) -> list[Finding]:
        """See Driver.check."""
        from runvm.hypervisor.uml import check

        return check.findings(self._config)

    def launch(
        self,
        machine: Machine,
        endpoints: Endpoints,
        *,
        jail: str,
        state: int = -1,
        ram_ready: Callable[[], None],
        deadline: float,
    ) -> UmlVm:
        """See Driver.launch. The memory is a file of the kernel's own, so that `ram` stays empty."""
        try:
            return _launch(machine, endpoints, directory=jail, deadline=deadline)
        except OSError as error:
            raise VmmError(f"User Mode Linux can't be started: {error}") from error


class UmlVm:
    """A User Mode Linux that is about to be run (until resume()) or runs; its parent is the process that launched
    it."""

    def __init__(self, pid: int, listener: int, share: socket.socket) -> None:
        self.pid = pid
        self._listener = listener
        self._share = share
        self._daemon: socket.socket | None = None
        self._tag = ""
        self._relay: ShareRelay | None = None

    def plug_share(self, share: socket.socket, tag: str, *, deadline: float) -> None:
        """See Vm.plug_share: before the first resume()."""
        self._daemon, self._tag = share, tag

    def resume(self, *, deadline: float) -> None:
        """Let the kernel start, and see it through until its share is set up; from then on it is on its own."""
        try:
            self._start(deadline)
        except OSError as error:
            raise VmmError(f"User Mode Linux can't be started: {error}") from error
        finally:
            self._end_start()

    def attach(self, loop: Loop) -> None:
        """See Vm.attach: nothing is left to be answered."""

    def plug_nic(self, index: int, tap: int, mac: str, answered: Answered) -> None:
        """See Vm.plug_nic. Raises VmmError: a VM has all of its NICs from the start, or none."""
        raise VmmError("a virtual machine that started without a network can't have network interfaces later")

    def grow(self, mib: int, answered: Answered) -> None:
        """See Vm.grow."""
        answered(UnsupportedError("the memory of User Mode Linux is fixed at its start"))

    def plug_vcpus(self, count: int, answered: Answered) -> None:
        """See Vm.plug_vcpus."""
        answered(UnsupportedError("User Mode Linux has one virtual CPU"))

    def pause(self, *, deadline: float) -> None:
        """See Vm.pause. Raises UnsupportedError: it is for snapshots."""
        raise UnsupportedError("User Mode Linux can't be paused as a whole")

    def snapshot(self, path: str, *, deadline: float) -> None:
        """See Vm.snapshot. Raises UnsupportedError."""
        raise UnsupportedError("User Mode Linux has no snapshots")

    def _start(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._share, select.POLLIN)
        relay = None
        while relay is None or not relay.done:
            left = deadline - time.monotonic()
            ready = poll.poll(max(0.0, left) * 1000)
            if not ready and left <= 0:
                raise DeadlineError("timed out waiting for the guest's kernel to set up its share")
            for fd, events in ready:
                if fd == self._listener:
                    if not events & select.POLLIN:
                        raise VmmError("User Mode Linux ended while it started")
                    seccomp.let_pass(fd)
                elif relay is None:
                    kernel, _ = self._share.accept()
                    if self._daemon is None:
                        kernel.close()  # a guest that nothing is shared with: it does without the device
                        return
                    relay = self._relay_to(self._daemon, kernel, deadline)
                    poll.unregister(fd)
                    poll.register(relay.kernel, select.POLLIN)
                else:
                    relay.step()

    def _relay_to(self, daemon: socket.socket, kernel: socket.socket, deadline: float) -> ShareRelay:
        for sock in (kernel, daemon):
            sock.settimeout(max(0.1, deadline - time.monotonic()))
        self._relay = ShareRelay(kernel, daemon, self._tag)
        return self._relay

    def _end_start(self) -> None:
        """From here on the calls that only a start needs fail."""
        self._share.close()
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1

    def kill(self) -> None:
        """See Vm.kill. Raises DeadlineError if even SIGKILL doesn't end it within 10 s."""
        process.end_child(self.pid, "User Mode Linux")
        self._end_start()
        if self._relay is not None:
            self._relay.kernel.close()


def _launch(machine: Machine, endpoints: Endpoints, *, directory: str, deadline: float) -> UmlVm:
    """User Mode Linux in the jail *directory*, up to its exec. Raises VmmError, OSError."""
    uid = jail.user_id(_DEVICES)
    os.mkdir(directory + MEMORY, 0o700)
    os.chown(directory + MEMORY, uid, uid)
    share = _listen(directory, uid)
    ours, theirs = socket.socketpair()
    parent = os.pidfd_open(os.getpid())
    with ours, theirs:
        try:
            pid = process.fork_in_pid_namespace(
                lambda: _become_uml(machine, endpoints, directory=directory, uid=uid, parent=parent, report=theirs)
            )
        except BaseException:
            share.close()
            raise
        finally:
            os.close(parent)
        theirs.close()
        try:
            ours.settimeout(max(0.1, deadline - time.monotonic()))
            descriptors = socket.recv_fds(ours, 1, 1)[1]
            if not descriptors:
                raise VmmError("User Mode Linux can't be confined")
        except BaseException:
            UmlVm(pid, -1, share).kill()
            raise
    log.debug("supervisor: User Mode Linux confined")
    return UmlVm(pid, descriptors[0], share)


def _become_uml(
    machine: Machine, endpoints: Endpoints, *, directory: str, uid: int, parent: int, report: socket.socket
) -> NoReturn:
    """In the forked process: confine it, send the filter's listener to *report*, exec. *parent* is the launcher's
    pidfd."""
    import resource  # while the host's files are there

    kept = (endpoints.agent, *endpoints.nics)
    argv = arguments(machine, agent=endpoints.agent, nics=endpoints.nics)
    visible = [path for path in (machine.kernel, machine.initramfs, *_LIBRARIES, *_PROC) if os.path.exists(path)]
    os.setsid()
    process.redirect(endpoints.console)
    for fd in kept:
        os.set_inheritable(fd, True)
    process.close_above(2, (*kept, report.fileno(), parent))
    jail.enter(directory, read_only=visible, devices=_DEVICES, uid=uid)
    # its parent is in another PID namespace, so its pid tells nothing here
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent], [], [], 0)[0]:
        os._exit(1)
    os.close(parent)
    process.reset_signals()
    # the guest's memory begins where the heap does: at a random distance, that is memory managed for nothing
    syscalls.set_personality(syscalls.ADDR_NO_RANDOMIZE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    listener = seccomp.install()
    socket.send_fds(report, [b"s"], [listener])
    os.close(listener)
    report.close()
    os.execve(argv[0], argv, {"TMPDIR": MEMORY, "HOME": MEMORY})


def _listen(directory: str, uid: int) -> socket.socket:
    """The socket in the jail that the kernel connects to for its share. A descriptor stands for the directory, whose
    path may be longer than an address can be."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}{SHARE}")
        os.chown(directory + SHARE, uid, uid)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(fd)
    return listener
