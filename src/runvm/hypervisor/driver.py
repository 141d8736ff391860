"""What the rest of runvm asks of a hypervisor, and the lookup of the driver that the configuration names."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from runvm.errors import ConfigError

if TYPE_CHECKING:
    from runvm.config import Config


class Machine(NamedTuple):
    """A virtual machine to be: all that its template depends on. *growth_mib* is how much memory it can get later,
    *most_vcpus* how many virtual CPUs it can come to have."""

    accelerator: str
    vcpus: int
    most_vcpus: int
    memory_mib: int
    growth_mib: int
    kernel: str
    initramfs: str
    image_key: str
    cmdline: str


class Endpoints(NamedTuple):
    """Descriptors handed to the VMM at its launch: the agent's port, the console, the tap of the first NIC."""

    agent: int
    console: int
    tap: int


class Vm(Protocol):
    """A VM that a driver launched; the process that launched it owns it."""

    pid: int

    def plug_share(self, share: socket.socket, tag: str, *, deadline: float) -> None:
        """Plug a vhost-user file system in; *share* is connected to its daemon."""

    def plug_nic(self, index: int, tap: int, mac: str, *, deadline: float) -> None:
        """Plug a further NIC in; *index* from 1, *tap* a tap's descriptor."""

    def grow(self, mib: int, *, deadline: float) -> None:
        """Have *mib* of the machine's growth_mib; the guest takes it as it can."""

    def plug_vcpus(self, count: int, *, deadline: float) -> None:
        """Have *count* virtual CPUs, at most the machine's most_vcpus; the guest has to take them into use."""

    def resume(self, *, deadline: float) -> None:
        """Let the virtual CPUs run."""

    def pause(self, *, deadline: float) -> None:
        """Stop the virtual CPUs."""

    def snapshot(self, path: str, *, deadline: float) -> None:
        """Write the paused VM's device state to *path*; its RAM is the file that it was launched with."""

    def kill(self) -> None:
        """End the VMM at once and reap it."""


class Driver(Protocol):
    """A hypervisor: launches VMs."""

    name: str
    can_snapshot: bool
    kernel_args: str
    """The guest kernel's command line for this machine, its console among it."""

    def version_key(self) -> str:
        """What tells this VMM's build from another, for a template's key. Raises HostError where it is missing."""

    def hardware(self, machine: Machine) -> str:
        """What *machine* is built of when a snapshot of it is restored, which fits no other: for a template's key."""

    def accelerator(self) -> str:
        """'kvm' where it works, else 'tcg'."""

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
        """Start a VMM confined to *jail*, where the files `ram` and `more` are the VM's memory and what it can
        grow by; it is left paused.

        With *state* (a descriptor of a snapshot's device state) the VM is restored, else it will boot. *ram_ready* is
        called before the VM's memory is looked at, and waits until it is there. Raises VmmError.
        """


def load(config: Config) -> Driver:
    """The driver of that configuration: built in, or from an installed package's entry point in `runvm.hypervisors`."""
    if config.hypervisor == "qemu":
        from runvm.hypervisor.qemu import Qemu

        return Qemu(config)
    from importlib.metadata import entry_points

    for entry in entry_points(group="runvm.hypervisors", name=config.hypervisor):
        driver: Driver = entry.load()(config)
        return driver
    raise ConfigError(f"hypervisor '{config.hypervisor}' isn't installed", do="'qemu' is built in")
