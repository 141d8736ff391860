"""How a VM comes to be: planned by `create`, which forks a supervisor; that starts virtiofsd and the VMM, then serves
until the last container has gone."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.errors import (
    CheckpointError,
    DeadlineError,
    GuestError,
    HostError,
    KilledError,
    RunvmError,
    UnsupportedError,
    VmmError,
    words,
)
from runvm.guest import image
from runvm.hypervisor import boot, drivers, proof, template
from runvm.linux import files, process, syscalls, userns
from runvm.log import log
from runvm.network import tap
from runvm.network.networks import HostNetworks
from runvm.protocol.frames import FrameError
from runvm.protocol.names import SHARE_TAG
from runvm.sandbox import diagnosis, host_mounts, registry, sizes
from runvm.sandbox.plan import Started, VmPlan
from runvm.sandbox.supervisor import Supervisor
from runvm.shares import tree, virtiofs

if TYPE_CHECKING:
    from runvm.cgroup.cgroup import Cgroup
    from runvm.config import Config
    from runvm.hypervisor.driver import Machine
    from runvm.linux.process import Identity
    from runvm.oci.spec import Spec
    from runvm.sandbox.plan import Restore
    from runvm.sandbox.registry import Sandbox


_START_SECONDS = 60
"""How long a virtual machine may take to start beside its guest's boot."""


def start(
    config: Config,
    sandbox: Sandbox,
    spec: Spec,
    cgroup: Cgroup,
    listener: socket.socket,
    *,
    network_of: Identity | None,
) -> int:
    """Fork the supervisor of a new VM for the container of *spec*: the descriptor on which it reports, for
    await_running(). *network_of* is a process in the container's network namespace, or None.

    Raises: RunvmError, OSError.
    """
    plan = _planned(config, sandbox, spec, cgroup)
    try:
        return _fork(plan, spec, cgroup, listener, network_of)
    finally:
        if plan.held >= 0:
            os.close(plan.held)


def _planned(config: Config, sandbox: Sandbox, spec: Spec, cgroup: Cgroup) -> VmPlan:
    """A VM that isn't a checkpoint's. The plan's descriptor is the caller's to close. Raises RunvmError, OSError."""
    chosen = drivers.load(config)
    guest, held = image.take(config, chosen.capabilities.kernel_format)
    try:
        max_mib = sizes.max_mib(cgroup.room_mib())
        limits = sizes.of_vm(spec.annotations, spec.resources)
        size = sizes.base_mib if chosen.capabilities.hotplug_memory else sizes.fixed_mib
        machine = boot.machine_for(
            config,
            chosen,
            guest,
            vcpus=sizes.vcpus(config, limits),
            memory_mib=size(config, limits, max_mib),
            accelerator=proof.accelerator(config, chosen),
        )
        log.debug(f"create: hypervisor {chosen.name}, accelerator {machine.accelerator}")
        directory = ""
        if config.template and chosen.capabilities.snapshot:
            try:
                directory = template.ensure(config, chosen, machine)
            except (RunvmError, OSError) as error:
                log.warning(f"no template could be made, booting instead: {error}")
        return VmPlan(config, chosen, machine, max_mib, directory, sandbox, guest.modules, -1, held)
    except BaseException:
        if held >= 0:
            os.close(held)
        raise


def restore(
    config: Config,
    sandbox: Sandbox,
    spec: Spec,
    cgroup: Cgroup,
    listener: socket.socket,
    *,
    machine: Machine,
    restore: Restore,
    network_of: Identity | None,
    fall_back: bool,
) -> int:
    """As start(), for a VM that comes from a checkpoint; with *fall_back* one that doesn't is started where that one
    doesn't come up. Raises: RunvmError, OSError."""
    chosen = drivers.load(config)
    fallback = _planned(config, sandbox, spec, cgroup) if fall_back else None
    guest, held = image.take(config, chosen.capabilities.kernel_format)
    try:
        if guest.key != machine.image_key:
            raise CheckpointError(
                f"the checkpoint's guest image isn't {guest.name}",
                do="name it by 'image' in the configuration, if 'runvm image list' has it",
            )
        max_mib = sizes.max_mib(cgroup.room_mib())
        plan = VmPlan(
            config, chosen, machine, max_mib, "", sandbox, guest.modules, -1, held, restore=restore, fallback=fallback
        )
        return _fork(plan, spec, cgroup, listener, network_of)
    finally:
        for fd in (held, -1 if fallback is None else fallback.held):
            if fd >= 0:
                os.close(fd)


def _fork(plan: VmPlan, spec: Spec, cgroup: Cgroup, listener: socket.socket, network_of: Identity | None) -> int:
    namespace = -1
    if network_of is not None:
        namespace = process.open_namespace(network_of, "network")
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        oom_score = spec.raw["process"].get("oomScoreAdj")
        plan = plan._replace(namespace=namespace)
        process.orphan(lambda: main(plan, cgroup.procs, oom_score, listener, writer))
        os.close(writer)
        return reader
    finally:
        if namespace >= 0:
            os.close(namespace)


def build_template(config: Config) -> template.Template:
    """Make the template of the default machine if it isn't there. Raises RunvmError, OSError."""
    chosen = drivers.load(config)
    if not chosen.capabilities.snapshot:
        raise UnsupportedError(f"hypervisor '{chosen.name}' makes no templates: its virtual machines boot")
    guest, held = image.take(config, chosen.capabilities.kernel_format)
    try:
        machine = boot.machine_for(
            config,
            chosen,
            guest,
            vcpus=sizes.vcpus(config, {}),
            memory_mib=sizes.base_mib(config, {}),
            accelerator=proof.accelerator(config, chosen),
        )
        return template.read(template.ensure(config, chosen, machine))
    finally:
        if held >= 0:
            os.close(held)


def await_running(report: int, sandbox: Sandbox, seconds: float) -> str:
    """Until the VM of *sandbox* runs, whose supervisor reports on *report*, which is closed: '', or why it isn't that
    of the checkpoint. That may take *seconds*, beside what a supervisor needs itself. Raises RunvmError with what it
    says, or what was said last."""
    seconds += _START_SECONDS
    poll = select.poll()
    poll.register(report, select.POLLIN)
    try:
        if not poll.poll(seconds * 1000):
            raise DeadlineError(
                f"timed out after {seconds:.0f} s waiting for the virtual machine to start",
                details=diagnosis.last_lines(sandbox.directory),
            )
        data = os.read(report, 65536)
        if data[:1] != b"\0":
            message, _, details = data[1:].decode(errors="replace").partition("\n")
            if not message:
                message = "the supervisor ended, or was killed, while it started the virtual machine"
                details = diagnosis.last_lines(sandbox.directory)
            raise VmmError(message, details=details)
        return data[1:].decode(errors="replace")
    finally:
        os.close(report)


def main(
    plan: VmPlan, cgroup_procs: tuple[str, ...], oom_score: int | None, listener: socket.socket, report: int
) -> None:
    """The life of a supervisor, in the forked process. A zero byte on *report* tells the command that the VM runs, and
    what follows why it isn't the checkpoint's; another byte and a text that it doesn't."""
    log.debug("supervisor: forked")
    runs = asked = False
    try:
        _settle(plan, cgroup_procs, (listener.fileno(), report))
        # not that of an engine's daemon, which the host's kernel is to spare
        process.set_oom_score(oom_score)
        share = tree.Tree(f"{plan.sandbox.directory}/share")
        if plan.modules:
            share.show_modules(plan.modules)
        supervisor, note = _supervisor(plan, listener, share)
        os.write(report, b"\0" + note.encode()[:32768])
        os.close(report)
        runs = True
        supervisor.run()
        asked = supervisor.life.left_cause
    except Exception as error:  # the process's edge: the VM's callers and the log are told, whatever it is
        message = words(error)
        details = getattr(error, "details", "") or diagnosis.last_lines(plan.sandbox.directory)
        if not isinstance(error, RunvmError | OSError | FrameError):
            import traceback

            message, details = f"internal error: {type(error).__name__}: {error}", traceback.format_exc()
        log.error(message, details)
        if not runs:
            os.write(report, b"\1" + "\n".join(part for part in (message, details) if part).encode()[:32768])
    finally:
        if not runs or not os.environ.get("RUNVM_KEEP"):
            for name in ("jail", "share"):
                with suppress(OSError):
                    syscalls.unmount(f"{plan.sandbox.directory}/{name}", syscalls.MNT_DETACH)
            if not asked:  # else the `create` that finds the cause there removes it
                files.remove_tree(plan.sandbox.directory)


def _supervisor(plan: VmPlan, listener: socket.socket, share: tree.Tree) -> tuple[Supervisor, str]:
    """With its VM, and why that isn't the checkpoint's that it was to be. Raises RunvmError, OSError."""

    def start(plan: VmPlan) -> Started:
        return _start(plan, share)

    try:
        return Supervisor(plan, listener, share, start), ""
    except (RunvmError, OSError) as error:
        if plan.fallback is None or plan.restore is None:
            raise
        note = words(error)
    log.warning(f"the checkpoint's virtual machine doesn't come up: {note}")
    share.remove(plan.restore.place)
    with suppress(OSError):
        syscalls.unmount(f"{plan.sandbox.directory}/jail", syscalls.MNT_DETACH)
    return Supervisor(plan.fallback._replace(namespace=plan.namespace), listener, share, start), note


def _settle(plan: VmPlan, cgroup_procs: tuple[str, ...], keep: tuple[int, ...]) -> None:
    """Become a process of the container's cgroup that has nothing of the command's but the descriptors *keep*. Raises
    OSError."""
    process.join_cgroups(cgroup_procs)
    os.setsid()
    os.umask(0o022)  # the hypervisor, of another user, looks into its jail
    syscalls.set_name("runvm-sandbox")
    syscalls.raise_limits()  # it has the descriptors of all its containers' connections
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # an engine's stop of a whole process group isn't meant for the VM
    out = os.open(f"{plan.sandbox.directory}/supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    process.redirect(out)
    held = (plan.namespace, plan.held, -1 if plan.fallback is None else plan.fallback.held)
    process.close_above(2, (*keep, *(fd for fd in held if fd >= 0)))
    log.keep_to_stderr()
    registry.record(plan.sandbox, {"supervisor": os.getpid()})
    # in a user namespace there is no way back from a container's network to the host's, only to one of our own
    syscalls.unshare(syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWNET if userns.limited() else 0))
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    os.chdir("/")
    host_mounts.let_go(plan, cgroup_procs)


def _start(plan: VmPlan, share: tree.Tree) -> Started:
    """Everything of a VM, running. Raises RunvmError, OSError."""
    if plan.restore is not None:
        from runvm.sandbox import restoring

        restoring.show_files(plan.restore, share)
    daemon = virtiofs.serve(plan.config, share.path, log=f"{plan.sandbox.directory}/virtiofsd.log")
    log.debug("supervisor: virtiofsd forked")
    try:
        return _start_beside(plan, daemon)
    except BaseException:
        if plan.fallback is not None:
            daemon.kill()
        raise


def _start_beside(plan: VmPlan, daemon: virtiofs.Daemon) -> Started:
    """The rest of a VM whose share *daemon* serves. Raises RunvmError, OSError."""
    sockets = plan.driver.capabilities.nic_transport == "packet"
    # a container in the virtual machine's own network sees all of its NICs: one that can have none has none then
    networks = HostNetworks(plan.sandbox.directory, sockets=sockets and plan.namespace >= 0)
    if plan.restore is not None:
        networks.number_from(plan.restore.network)
    if plan.namespace >= 0:
        first = networks.first_tap(plan.namespace)
    else:
        first = -1 if sockets else tap.scratch_tap()
    log.debug("supervisor: tap made")
    try:
        if plan.restore is not None:
            from runvm.sandbox import restoring

            guest, note = restoring.start_guest(plan, plan.restore, first, daemon.socket), ""
        else:
            guest, note = _start_guest(plan, first, networks.sockets, daemon.socket)
    except RunvmError as error:
        ended = daemon.ended()
        console = error.details if isinstance(error, DeadlineError | GuestError) else ""
        last = diagnosis.last_lines(plan.sandbox.directory, console=console)
        if ended:
            raise HostError(f"virtiofsd {ended} before the virtual machine ran", details=last) from error
        error.details = last
        raise
    finally:
        if first >= 0:
            os.close(first)
    registry.record(plan.sandbox, {"supervisor": os.getpid(), "vmm": guest.vm.pid, "virtiofsd": daemon.pid})
    return Started(guest, daemon, networks, note)


def _start_guest(plan: VmPlan, tap: int, nics: tuple[int, ...], share: socket.socket) -> tuple[boot.Guest, str]:
    """Start the VM from its template, or boot it where there is none or it fails; then plug the share in and let
    it run. With it comes what the user should know."""
    deadline = time.monotonic() + plan.config.boot_timeout_s
    directory = plan.sandbox.directory
    guest, broken = None, ""
    if plan.template:
        try:
            guest = boot.start(
                plan.driver, plan.machine, directory=directory, tap=tap, template=plan.template, deadline=deadline
            )
        except (RunvmError, OSError) as error:
            if isinstance(error, DeadlineError) and template.has_served(plan.template):
                template.doubt(plan.template)
                raise  # most likely the host is too busy, and booting takes longer
            log.warning(f"the template isn't used: {words(error)}")
            broken = "" if isinstance(error, KilledError) else words(error)  # else it is the host's fault
            with suppress(OSError):
                syscalls.unmount(f"{directory}/jail", syscalls.MNT_DETACH)
    cold = guest is None
    if guest is None:
        guest = boot.start(plan.driver, plan.machine, directory=directory, tap=tap, nics=nics, deadline=deadline)
    log.debug("supervisor: VMM up and paused")
    guest.vm.plug_share(share, SHARE_TAG, deadline=deadline)
    log.debug("supervisor: share plugged in")
    try:
        guest.vm.resume(deadline=deadline)
    except RunvmError:
        # a hypervisor that is the guest's kernel has begun to boot, and says there what it lacks
        if console := guest.console_end():
            with open(f"{directory}/console.log", "w", opener=files.private) as file:
                file.write(console)
        raise
    log.debug("supervisor: guest resumed")
    if cold:
        guest.wait_hello(deadline=deadline)
    # only now is it the template that was to blame, and not the host
    return guest, template.drop(plan.template, broken) if broken else ""
