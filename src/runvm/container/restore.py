"""`restore`: a container goes on from a checkpoint's image, in a new virtual machine, with a new bundle's files."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from runvm import __version__
from runvm.checkpoint import image, support
from runvm.container import create, plans, shape
from runvm.container.checkpoint import cpu_of
from runvm.errors import CheckpointError, UnsupportedError
from runvm.hypervisor import drivers
from runvm.hypervisor.driver import Machine
from runvm.linux.architecture import KNOWN
from runvm.log import log
from runvm.protocol import messages, version
from runvm.records import NamedTuple
from runvm.sandbox import placement, registry, sizes
from runvm.sandbox.checkpointing import Stopped
from runvm.sandbox.plan import Restore
from runvm.shares import virtiofs

if TYPE_CHECKING:
    import socket

    from runvm.config import Config
    from runvm.container.context import Context
    from runvm.container.options import CreateOptions
    from runvm.container.plans import ContainerPlan
    from runvm.hypervisor.driver import Driver
    from runvm.linux.process import Identity
    from runvm.sandbox.placement import Placement

_PLACE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+,-.")
_MAX_MIB = 16 << 20
_CONTENTS = ("ram", "more")


class Saved(NamedTuple):
    """An image that has been read and checked: its directory, manifest, the machine, and how its VM stood still."""

    directory: str
    manifest: image.Manifest
    machine: Machine
    stopped: Stopped
    input: bytes


def restore(
    ctx: Context, cid: str, options: CreateOptions, image_path: str, *, terminal_master: list[int] | None = None
) -> None:
    """Make the container and leave it running. With *terminal_master*, a terminal's master is appended there instead of
    sent away.

    Raises: CheckpointError for an image that is damaged or doesn't fit, RunvmError; nothing half-made is left then.
    """
    if not ctx.config.container_hypervisors:  # else the bundle may choose another
        _check_host(ctx.config)
    plan = plans.plan(ctx, cid, options, own_terminal=terminal_master is not None)
    saved = read(image_path)
    plan = plan._replace(config=_with_hypervisor(plan.config)._replace(arch=saved.machine.architecture))
    _check_versions(saved, plan.config, _check_host(plan.config))
    check_bundle(saved, plan)
    with create.making(ctx, cid) as (failed, held):
        restoration = Restoration(ctx, cid, plan, failed, held)
        place = restoration.prepare()
        restoration.make_view()
        restoration.restore_vm(saved)
        with create.explaining(place.sandbox):
            restoration.await_vm(place)
            restoration.take_up(place, saved)
        restoration.release(options, terminal_master, started=True)
    log.debug("restore: done")


def _with_hypervisor(config: Config) -> Config:
    """What new containers get need not be what can restore."""
    return config._replace(hypervisor=drivers.with_checkpoints(config))


def _check_host(config: Config) -> Driver:
    """The driver that restores. Raises UnsupportedError where none can, HostError, ConfigError."""
    return support.check(_with_hypervisor(config), "restore", "")


def read(directory: str) -> Saved:
    """The image in *directory*, but for its memory, which is checked as it is copied. Raises CheckpointError."""
    manifest = image.Files(directory).manifest()
    damaged = CheckpointError(f"the checkpoint {directory} is damaged: its virtual machine makes no sense")
    try:
        stopped = Stopped(**_checked(manifest.vm, Stopped))
        machine = Machine(**_checked(stopped.machine, Machine))
        data = base64.b64decode(stopped.input, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise damaged from None
    numbers = (machine.vcpus, machine.max_vcpus, machine.memory_mib, machine.growth_mib, stopped.channel)
    place = stopped.place
    if (
        not all(0 < number < _MAX_MIB for number in numbers)
        or not 0 <= stopped.network < 1 << 16
        or not 0 <= stopped.extra_mib <= stopped.grown_mib <= machine.growth_mib
        or not place
        or place in (".", "..")
        or not _PLACE_CHARACTERS.issuperset(place)
        or machine.accelerator not in ("kvm", "tcg")
        or machine.architecture not in KNOWN
    ):
        raise damaged
    return Saved(directory, manifest, machine, stopped, data)


def _checked(body: dict[str, Any], kind: Any) -> dict[str, Any]:
    """*body* if it has the fields of *kind*, a NamedTuple, with values of their types. Raises TypeError."""
    hints: dict[str, str] = kind.__annotations__
    types: dict[str, type] = {"int": int, "str": str, "bool": bool}
    if body.keys() != hints.keys():
        raise TypeError("other fields")
    for field, hint in hints.items():
        if type(body[field]) is not types.get(hint, dict):
            raise TypeError(field)
    return body


def _check_versions(saved: Saved, config: Config, driver: Driver) -> None:
    """Raises CheckpointError, naming what is another version."""
    made, machine = saved.manifest, saved.machine
    pairs = [
        ("runvm", made.release, __version__),
        ("the protocol", str(made.protocol), str(version.PROTOCOL)),
        ("the hypervisor", made.driver, driver.name),
        ("the hypervisor's version", made.vmm, driver.release()),
        ("virtiofsd", made.daemon, virtiofs.release(config)),
        ("the processor", made.cpu.strip(), cpu_of(machine).strip()),
        ("the virtual machine's hardware", made.hardware, driver.hardware(machine)),
    ]
    for what, then, now in pairs:
        if then != now:
            raise CheckpointError(f"the checkpoint was made where {what} was {_short(then)}; here it is {_short(now)}")


def _short(text: str) -> str:
    return f"'{text[:120]}…'" if len(text) > 120 else f"'{text}'"


def check_bundle(saved: Saved, plan: ContainerPlan) -> None:
    """Raises CheckpointError, naming what differs."""
    shape.check(saved.manifest.shape, shape.of(plan.spec.raw))


class Restoration(create.Creation):
    """The steps of one `restore`, most of which are those of a `create`. The VM comes after view and hooks: what the
    container's files are has to be settled before virtiofsd looks for them."""

    def prepare(self) -> Placement:
        """All before view and VM: cgroup and shim. Raises UnsupportedError where it would be another container's,
        RunvmError, OSError."""
        plan = self._plan
        self.make_cgroup()
        with placement.placed(plan.config, plan.spec, self._cid) as place, create.explaining(place.sandbox):
            if not place.new:
                raise UnsupportedError("a checkpoint can't be restored into another container's virtual machine")
            self.start_shim(place)
            self.enlist(place)
        return place

    def restore_vm(self, saved: Saved, *, fall_back: bool = False) -> None:
        """Fork the supervisor, which brings the VM up from the image, or with *fall_back* another one where that fails.
        Raises RunvmError, OSError."""
        from runvm.sandbox import launch

        stopped = saved.stopped
        restore = Restore(
            directory=saved.directory,
            hashes={name: saved.manifest.files[name][1] for name in _CONTENTS},
            size=sum(saved.manifest.files[name][0] for name in _CONTENTS),
            before=saved.manifest.container,
            place=stopped.place,
            shares=shape.renamed(self._plan.guest.shares, saved.manifest.shape, shape.of(self._plan.spec.raw)),
            shim=self._record.shim,
            layout=stopped.layout,
            channel=stopped.channel,
            network=stopped.network,
            grown_mib=stopped.grown_mib,
            extra_mib=stopped.extra_mib,
            watched=stopped.watched,
            input=saved.input,
            input_ended=stopped.input_ended,
        )
        self._patience += restore.copy_seconds
        plan = self._plan

        def start(listener: socket.socket, network_of: Identity | None) -> int:
            return launch.restore(
                plan.config,
                self._place.sandbox,
                plan.spec,
                self._cgroup,
                listener,
                machine=saved.machine,
                restore=restore,
                network_of=network_of,
                fall_back=fall_back,
            )

        self.fork_supervisor(start)

    def take_up(self, place: Placement, saved: Saved, *, at_start: bool = False) -> None:
        """Have the guest take its container up: now, or when it is started."""
        spec = self._plan.spec
        same = not saved.stopped.updated and saved.manifest.resources == spec.resources
        request = messages.RestoreContainer(
            self._cid,
            self._plan.guest.spec["linux"]["resources"],
            same,
            self._plan.network,
            list(self._cgroup.directories),
            sizes.limit_mib(spec.resources),
            str(self._plan.guest.spec.get("hostname") or ""),
            at_start,
        )
        registry.call(place.sandbox, request)
        self.note_hypervisor(saved.manifest.driver, saved.machine.accelerator)
        log.debug("restore: container taken up by the guest")
