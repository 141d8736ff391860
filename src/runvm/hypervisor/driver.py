"""The contract between runvm and a hypervisor: what a driver is asked for, what it owes, and what it may lack.

A driver states its Capabilities, and the sandbox asks by them: no code outside of a driver's own folder knows a
hypervisor by name. docs/how-to/hypervisor.md is the guide for writing one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from runvm.records import NamedTuple

if TYPE_CHECKING:
    import socket

    from runvm.errors import RunvmError
    from runvm.linux.loop import Loop

    Answered = Callable[[RunvmError | None], None]
    """Gets None, or what went wrong."""


class Capabilities(NamedTuple):
    """What a driver can do. What it can't is refused with a clear error, or done without where that is possible.

    *snapshot*: a paused VM's state can be written to a file, and a VM be started from it (templates).
    *hotplug_share*: the shared directory is plugged in after the launch; without it, it is part of Endpoints.
    *hotplug_nic*, *hotplug_cpu*, *hotplug_memory*: network interfaces, virtual CPUs, memory can be added to a VM that
    runs.
    *agent_transport*: how the guest finds its line to the supervisor: 'virtio-serial' (a port named
    protocol.names.AGENT_PORT) or 'tty' (a serial line, in raw mode).
    *kernel_format*: which of an image's kernels it boots: 'bzImage' (the image's own, in whatever format its
    architecture's has) or 'uml'.
    *accelerators*: what can run the guest's instructions, the fastest first.
    *max_vcpus*: how many virtual CPUs a VM can have.
    *nic_transport*: what the host's end of a network interface (NIC) is: 'tap' (a tap's descriptor), or 'packet' (a
    packet socket, one for each NIC that the VM can come to have, made before it).
    *checkpoint*: a VM that runs can be saved with its share: Vm.freeze(), save(), thaw(), and launch() with *share*
    among the endpoints. Whether the versions on this host can is Driver.checkpoint_lacks()'s to say.
    *hot_reload*: its guests' kernels can tell who watches files of what the host does (agent.watches, agent.replay).
    *architectures*: those of which a guest can be besides the host's own, by Debian's names.
    *narrow_programs*: its guests run programs of 32 bits as well.
    """

    snapshot: bool
    hotplug_share: bool
    hotplug_nic: bool
    hotplug_cpu: bool
    hotplug_memory: bool
    agent_transport: str
    kernel_format: str
    accelerators: tuple[str, ...]
    max_vcpus: int = 255
    nic_transport: str = "tap"
    checkpoint: bool = False
    hot_reload: bool = False
    architectures: tuple[str, ...] = ()
    narrow_programs: bool = True


class Finding(NamedTuple):
    """One thing that a driver's check() has looked at: what was *found*, and where that isn't *ok* the command that is
    the *fix*."""

    name: str
    ok: bool
    found: str
    fix: str = ""


class Machine(NamedTuple):
    """A virtual machine to be: all that its template depends on. Sizes are in MiB; *growth_mib* is how much memory it
    can get later, *max_vcpus* how many virtual CPUs it can come to have; *architecture* is Debian's name of it."""

    accelerator: str
    vcpus: int
    max_vcpus: int
    memory_mib: int
    growth_mib: int
    kernel: str
    initramfs: str
    image_key: str
    cmdline: str
    architecture: str = "amd64"


class Endpoints(NamedTuple):
    """Descriptors handed to the VMM at its launch: the agent's line, the console, the tap of the first NIC (-1 where
    NICs are packet sockets, which are *nics*), and for a driver without hotplug_share, or for a VM from a checkpoint,
    the connection to the file system daemon (-1: none)."""

    agent: int
    console: int
    tap: int
    share: int = -1
    nics: tuple[int, ...] = ()


class Vm(Protocol):
    """A VM that a driver launched; the process that launched it owns it.

    While it comes up, its owner waits: what has a *deadline* (time.monotonic()) raises VmmError, or DeadlineError then.
    From attach() on it serves others besides: what takes *answered* returns at once, and calls that later, in the loop,
    within some seconds whatever the VMM does.
    """

    pid: int
    """The VMM's process, a child of the one that launched it."""

    def attach(self, loop: Loop) -> None:
        """The VM runs: *loop* takes the VMM's answers from now on."""

    def plug_share(self, share: socket.socket, tag: str, *, deadline: float) -> None:
        """Plug a vhost-user file system in; *share* is connected to its daemon. Called once, while the VM is paused;
        does nothing where the share was part of Endpoints."""

    def plug_nic(self, index: int, tap: int, mac: str, answered: Answered) -> None:
        """Plug a further NIC in; *index* from 1, *tap* a tap's descriptor, which may be closed when this returns.
        Raises VmmError where the VM can have no more. Not called where NICs are packet sockets."""

    def grow(self, mib: int, answered: Answered) -> None:
        """Have *mib* of the machine's growth_mib; the guest takes it as it can."""

    def plug_vcpus(self, count: int, answered: Answered) -> None:
        """Have *count* virtual CPUs, at most the machine's max_vcpus; the guest has to take them into use."""

    def resume(self, *, deadline: float) -> None:
        """Let the virtual CPUs run."""

    def pause(self, *, deadline: float) -> None:
        """Stop the virtual CPUs."""

    def snapshot(self, path: str, *, deadline: float) -> None:
        """Write the paused VM's device state to *path*; its RAM is the file that it was launched with."""

    def freeze(self, answered: Answered) -> None:
        """Stop the virtual CPUs."""

    def save(self, state: int, answered: Answered) -> None:
        """Write the frozen VM's device state, the file system daemon's among it, to the descriptor *state*."""

    def thaw(self, answered: Answered) -> None:
        """Let the virtual CPUs run after freeze(), and maybe save()."""

    def kill(self) -> None:
        """End the VMM at once and reap it. Raises DeadlineError if even SIGKILL doesn't."""


class Driver(Protocol):
    """A hypervisor: launches VMs. It is made with the Config, and keeps nothing but that."""

    name: str
    """As the setting `hypervisor` has it."""
    capabilities: Capabilities
    kernel_args: str
    """The guest kernel's command line for this machine, its console among it."""

    def check(self) -> list[Finding]:
        """What this driver needs of the host, each thing tried rather than believed, in some tenths of a second; for
        `runvm doctor`. Doesn't boot a guest."""

    def version_key(self) -> str:
        """What tells this VMM's build from another, for a template's key. Raises HostError where it is missing."""

    def checkpoint_lacks(self) -> str:
        """What it would take to checkpoint a VM here, '' where it can be done; for a driver with the capability."""

    def release(self) -> str:
        """The VMM's version, as its makers number it: a checkpoint is restored by the same."""

    def hardware(self, machine: Machine) -> str:
        """What *machine* is built of when a snapshot of it is restored, which fits no other: for a template's key."""

    def launch(
        self,
        machine: Machine,
        endpoints: Endpoints,
        *,
        jail: str,
        state: int = -1,
        ram_ready: Callable[[], None],
        deadline: float,
    ) -> Vm:
        """Start a VMM and leave it paused. With *state* (a descriptor of a snapshot's device state) the VM is restored,
        else it will boot. Raises VmmError, DeadlineError; no process is left then.

        The duties of a driver:

        - The VMM is a child of the caller and dies with it (linux.process.die_with_parent).
        - It is confined before it runs: hypervisor.jail.enter() with *jail* as its root, under a user id of its own
          (jail.user_id()), with no descriptors but those of *endpoints* and its own monitor.
        - The files `ram` and `more` in *jail* are the VM's memory and what it can grow by, mapped shared; the driver
          makes them its user's. A VM whose memory lies elsewhere leaves them empty.
        - *ram_ready* is called once before the VM's memory is looked at on a restore: it waits until `ram` is filled.
        - What it prints goes to the file `vmm.log` beside *jail*: its end is shown where a start fails.
        - Files that it may write are bounded (RLIMIT_FSIZE).
        """
