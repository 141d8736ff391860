"""Bringing a guest up to its agent's first word, by a boot or from a template; with what its console said when it
doesn't come."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm import __version__
from runvm.errors import DeadlineError, GuestError, KilledError, RunvmError, VmmError
from runvm.hypervisor import jail, ram
from runvm.hypervisor.child import Child
from runvm.hypervisor.driver import Driver, Endpoints, Machine, Vm
from runvm.linux import architecture, files, process, syscalls
from runvm.log import log
from runvm.protocol import frames, messages, version

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.config import Config
    from runvm.guest.image import Image

_CONSOLE_LINES = 12  # as diagnosis.last_lines() shows
_CONSOLE_READS = 16
"""Pieces of the console that are taken at a time, since a guest can write as fast as they are."""
_ENDING_SECONDS = 0.5
"""How long a VMM whose lines have closed may take to end."""
CONSOLE_KEPT = 16 << 10
"""Bytes of the guest's console that are kept for error messages; the guest may write as much as it likes."""

_AGENT = "MALLOC_TRIM_THRESHOLD_=8388608 MALLOC_MMAP_THRESHOLD_=4194304"
"""On the command line, for the agent's environment (bootparam(7), mallopt(3)): it keeps what a stream's frames take, as
page faults would take longer than the stream."""

_VCPUS = 16
"""A guest's kernel sets some hundred KiB aside for each virtual CPU that it might get."""


class Guest:
    """A VM with its two lines to the host: the agent's port and the console."""

    def __init__(self, vm: Vm, agent: socket.socket, console: socket.socket) -> None:
        self.vm = vm
        self.agent = agent
        self.console = console
        self.console_tail = b""

    def read_console(self) -> bool:
        """Take what the console has, keeping the end of it; False once it has ended."""
        self.console.setblocking(False)
        try:
            for _ in range(_CONSOLE_READS):
                data = self.console.recv(65536)
                if not data:
                    return False
                self.console_tail = (self.console_tail + data)[-CONSOLE_KEPT:]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def console_end(self) -> str:
        """The console's last lines, printable; and the one with the kernel's panic, which a stack trace comes after."""
        self.read_console()
        text = self.console_tail.decode(errors="replace").replace("\r", "")
        lines = [
            "".join(char if char.isprintable() else "?" for char in line) for line in text.split("\n") if line.strip()
        ]
        end = lines[-_CONSOLE_LINES:]
        panics = [line for line in lines if "Kernel panic" in line]
        if panics and panics[-1] not in end:
            end[0] = panics[-1]
        return "\n".join(end)

    def wait_hello(self, *, deadline: float) -> None:
        """Until the agent says that it is up. Raises DeadlineError or GuestError with the console's last lines;
        HostError where somebody, or the kernel for want of memory, has killed the VMM."""
        decoder = frames.Decoder(max_message=frames.MAX_GUEST_MESSAGE)
        poll = select.poll()
        poll.register(self.agent, select.POLLIN)
        poll.register(self.console, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                console = self.console_end()
                raise DeadlineError(
                    "timed out waiting for the guest to boot to its agent's answer",
                    details=console or "(its console is empty)",
                )
            for fd, _ in poll.poll(left * 1000):
                if fd == self.console.fileno():
                    if not self.read_console():
                        poll.unregister(fd)
                    continue
                data = self.agent.recv(4096)
                if not data:
                    raise self._ended()
                try:
                    for frame in decoder.feed(data):
                        _, hello = messages.decode(frame.payload, frozenset({"Hello"}))
                        _check_version(hello.version)
                        return
                except (frames.FrameError, messages.MessageError) as error:
                    raise GuestError(f"the guest's agent broke the protocol: {error}") from error

    def _ended(self) -> RunvmError:
        how = process.how_ended(self.vm.pid, deadline=time.monotonic() + _ENDING_SECONDS)
        message = "the guest ended before its agent answered" + (f": the VMM {how}" if how else "")
        kind = KilledError if how == process.KILLED else GuestError
        return kind(message, details=self.console_end())

    def kill(self) -> None:
        """End the VM, close the lines."""
        self.vm.kill()
        self.agent.close()
        self.console.close()


def machine_for(
    config: Config, driver: Driver, guest: Image, *, vcpus: int, memory_mib: int, accelerator: str
) -> Machine:
    """The machine that a configuration gives for the guest image *guest*."""
    # nothing of the guest's code runs on the processor itself under emulation, so its flaws aren't there to be
    # mitigated
    extra = " mitigations=off" if accelerator == "tcg" else ""
    if config.debug_console:
        extra += " ignore_loglevel"
    cmdline = f"{driver.kernel_args}{extra} {_AGENT} {config.kernel_args}".strip()
    vcpus = min(vcpus, driver.capabilities.max_vcpus)
    return Machine(
        accelerator,
        vcpus,
        _max_vcpus(vcpus) if driver.capabilities.hotplug_cpu else vcpus,
        memory_mib,
        _growth_mib() if driver.capabilities.hotplug_memory else 0,
        guest.kernel,
        guest.initramfs,
        guest.key,
        cmdline,
        architecture.chosen(config.arch),
    )


def _max_vcpus(vcpus: int) -> int:
    """What a VM that starts with *vcpus* may grow by: as many as the host has, within _VCPUS."""
    return max(vcpus, min(_VCPUS, len(os.sched_getaffinity(0))))


def _growth_mib() -> int:
    """What a VM may grow by: as much as the host has, in whole GiB so that a template outlives a reboot."""
    return max(1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30) << 10


def start(
    driver: Driver,
    machine: Machine,
    *,
    directory: str,
    tap: int,
    nics: tuple[int, ...] = (),
    template: str = "",
    share: int = -1,
    fill: Callable[[int, int], None] | None = None,
    deadline: float,
) -> Guest:
    """Launch a paused VM whose files are in *directory* (the caller's mount namespace is its own): a template's
    clone, or one that will boot. *tap*, *nics*: see Endpoints.

    Of a checkpoint, *template* is the directory, *share* the connection to its file system daemon, and *fill* writes
    the memory that the VM started with and what it has grown by into those descriptors, in a process of its own."""
    root = f"{directory}/jail"
    jail.prepare(root)
    memory = os.open(f"{root}/ram", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    agent, agent_vmm = socket.socketpair()
    console, console_vmm = socket.socketpair()
    state = more = -1
    copier: Child | None = None

    def ram_ready() -> None:
        if copier is not None:
            _wait_copied(copier, template, deadline)
        log.debug("supervisor: memory copied")

    try:
        os.ftruncate(memory, machine.memory_mib << 20)
        more = os.open(f"{root}/more", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(more, machine.growth_mib << 20)
        if template:
            state = os.open(f"{template}/state", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

            def copy() -> None:
                if fill is None:
                    ram.copy_sparse(f"{template}/ram", memory, lambda allowed: jail.allow_huge_pages(root, allowed))
                else:
                    fill(memory, more)

            copier = Child(copy, f"the copy of the memory in {template}")  # the VMM starts meanwhile
        endpoints = Endpoints(agent_vmm.fileno(), console_vmm.fileno(), tap, share, nics)
        try:
            vm = driver.launch(machine, endpoints, jail=root, state=state, ram_ready=ram_ready, deadline=deadline)
        except VmmError as error:
            raise VmmError(
                error.message, do="its own messages are below", details=files.tail(f"{directory}/vmm.log")
            ) from error
        return Guest(vm, agent, console)
    except BaseException:
        agent.close()
        console.close()
        if copier is not None:
            copier.kill()
        raise
    finally:
        agent_vmm.close()
        console_vmm.close()
        for fd in (memory, more, state):
            if fd >= 0:
                os.close(fd)


def _wait_copied(copier: Child, template: str, deadline: float) -> None:
    """Raises VmmError, upon which a guest boots instead, DeadlineError, KilledError."""
    try:
        copier.wait(deadline=deadline)
    except (DeadlineError, KilledError):
        raise
    except RunvmError as error:
        raise VmmError(f"the memory in {template} can't be copied: {error.message}") from error


def _check_version(told: str) -> None:
    """Raise GuestError for an agent of another runvm, as an image has that was built before an upgrade."""
    number, release = version.parse(told.encode())
    if number != version.PROTOCOL:
        raise GuestError(f"the guest image was built by runvm {release}; this is {__version__}", do="runvm image build")


def free_memory(directory: str) -> None:
    """Give the memory of a VM that has been killed back to the host. The files stay as long as they were: a checkpoint
    that is being taken has them mapped, and would get SIGBUS."""
    for name in ("ram", "more"):
        with suppress(OSError):
            fd = os.open(f"{directory}/jail/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                syscalls.punch_hole(fd, 0, os.fstat(fd).st_size)
            finally:
                os.close(fd)
