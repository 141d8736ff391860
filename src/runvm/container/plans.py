"""What `create` makes of a config.json before it makes anything on the host: the plan of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.container import architecture, guest_spec, passed, terminal
from runvm.errors import UnsupportedError
from runvm.linux import process
from runvm.linux.architecture import is_foreign
from runvm.log import log
from runvm.protocol import names
from runvm.records import NamedTuple
from runvm.sandbox import placement

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.container.context import Context
    from runvm.container.options import CreateOptions
    from runvm.oci.spec import Spec


class ContainerPlan(NamedTuple):
    """A container to be: the caller's *spec*, what the *guest* gets of it, the settings with the container's own
    annotations, the descriptors *handed* on, and whether it has a *network* namespace (else it has the VM's)."""

    spec: Spec
    guest: guest_spec.GuestPlan
    config: Config
    handed: passed.Passed
    network: bool


def plan(ctx: Context, cid: str, options: CreateOptions, *, own_terminal: bool) -> ContainerPlan:
    """Read and check all that `create` was given; *own_terminal*: the caller's own may be the container's.

    Raises: SpecError, UnsupportedError, ConfigError, HostError.
    """
    from runvm.oci import spec as oci

    listened = passed.listening()
    handed = passed.inspect(options.preserve_fds, listened)
    spec = oci.load(options.bundle, options.config_file)
    for warning in spec.warnings:
        log.warning(warning)
    oci.unsupported(spec)
    for label in oci.host_labels(spec):
        log.info(f"{label} is left out: the virtual machine confines the container instead")
    guest_spec.note_affinity(spec.raw["process"])
    terminal.check(spec.process.terminal, options.console_socket, own=own_terminal)
    guest = guest_spec.plan(spec, cid)
    guest.spec["process"]["env"] = [*guest.spec["process"].get("env", ()), *passed.environment(listened)]
    if spec.process.terminal and own_terminal:
        guest.spec["process"][names.PLAIN_NEWLINES] = True  # the caller's own terminal lays the lines out
        if not all(spec.process.console_size):  # before the program looks
            spec = spec._replace(process=spec.process._replace(console_size=terminal.callers_size()))
    if guest.notes:
        log.info(f"devices of the host that are not in the virtual machine: {', '.join(guest.notes)}")
    if placement.pod_of(spec):
        guest_spec.check_propagation(spec)
    program = architecture.Program(spec.process.args, spec.process.env, spec.process.cwd)
    config = architecture.settle(_config(ctx, spec), guest.view.rootfs, program)
    if is_foreign(config.arch):
        architecture.check_mounted(spec, config.arch)
        guest = guest._replace(spec=architecture.with_seccomp(guest.spec, config.arch))
    found = ContainerPlan(spec, guest, config, handed, _has_network(ctx, spec))
    log.debug("create: config.json read")
    return found


def _config(ctx: Context, spec: Spec) -> Config:
    """The settings, with what the container's annotations choose."""
    if not any(key.startswith("io.runvm.") for key in spec.annotations):
        return ctx.config
    from runvm.config import load

    return load(annotations=spec.annotations)._replace(state_dir=ctx.config.state_dir)


def _has_network(ctx: Context, spec: Spec) -> bool:
    """Whether the container has a network namespace of its own. Raises UnsupportedError for the host's, unless the
    config allows the VM's."""
    path = spec.namespaces.get("network")
    if path is not None and not (path and process.same_namespace(path, "/proc/self/ns/net")):
        return True
    if ctx.config.host_network != "vm":
        raise UnsupportedError(
            "the host's network namespace can't be shared with a virtual machine",
            do='give the container a network of its own, or set host_network = "vm" in /etc/runvm/config.toml for the virtual machine\'s',  # noqa: E501
        )
    return False
