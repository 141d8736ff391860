"""How a supervisor comes to be: forked by `create`, it starts virtiofsd and the VM, then serves until the last
container has gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from contextlib import suppress

from runvm.errors import DeadlineError, RunvmError
from runvm.hypervisor import boot, template
from runvm.linux import process, syscalls, userns
from runvm.log import log
from runvm.protocol.frames import FrameError
from runvm.sandbox import registry
from runvm.sandbox.networks import Networks
from runvm.sandbox.plan import Plan, Started
from runvm.sandbox.supervisor import Supervisor
from runvm.shares import tree, virtiofs


def main(
    plan: Plan, cgroup_procs: tuple[str, ...], oom_score: int | None, listener: socket.socket, report: int
) -> None:
    """The life of a supervisor, in the forked process. One byte on *report* tells the command that the VM runs, a
    text that it doesn't."""
    log.debug("supervisor: forked")
    runs = False
    try:
        _settle(plan, cgroup_procs, (listener.fileno(), report))
        # not that of an engine's daemon, which the host's kernel is to spare
        process.set_oom_score(oom_score)
        share = tree.Tree(f"{plan.sandbox.directory}/share")
        if plan.modules:
            share.show_modules(plan.modules)
        supervisor = Supervisor(plan, listener, share, lambda plan: _start(plan, share))
        os.write(report, b"\0")
        os.close(report)
        runs = True
        supervisor.run()
    except Exception as error:  # the process's edge: the VM's callers and the log are told, whatever it is
        message, details = str(error), getattr(error, "details", "")
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
            shutil.rmtree(plan.sandbox.directory, ignore_errors=True)


def _settle(plan: Plan, cgroup_procs: tuple[str, ...], keep: tuple[int, ...]) -> None:
    """Become a process of the container's cgroup that has nothing of the command's but the descriptors *keep*. Raises
    OSError."""
    process.join_cgroups(cgroup_procs)
    os.setsid()
    os.umask(0o022)  # the hypervisor, of another user, looks into its jail
    syscalls.set_name("runvm-sandbox")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # an engine's stop of a whole process group isn't meant for the VM
    out = os.open(f"{plan.sandbox.directory}/supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    process.redirect(out)
    process.close_above(2, (*keep, *(fd for fd in (plan.namespace, plan.held) if fd >= 0)))
    log.path = ""
    registry.record(plan.sandbox, {"supervisor": os.getpid()})
    # in a user namespace there is no way back from a container's network to the host's, only to one of our own
    syscalls.unshare(syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWNET if userns.limited() else 0))
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    os.chdir("/")


def _start(plan: Plan, share: tree.Tree) -> Started:
    """Everything of a VM, running. Raises RunvmError, OSError."""
    daemon = virtiofs.serve(plan.config, share.path, log=f"{plan.sandbox.directory}/virtiofsd.log")
    log.debug("supervisor: virtiofsd forked")
    networks = Networks()
    tap = networks.first_tap(plan.namespace) if plan.namespace >= 0 else template.scratch_tap()
    log.debug("supervisor: tap made")
    guest, note = _start_guest(plan, tap, daemon.socket)
    os.close(tap)
    registry.record(plan.sandbox, {"supervisor": os.getpid(), "vmm": guest.vm.pid, "virtiofsd": daemon.pid})
    return Started(guest, daemon, networks, note)


def _start_guest(plan: Plan, tap: int, share: socket.socket) -> tuple[boot.Guest, str]:
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
            broken = str(error)
            with suppress(OSError):
                syscalls.unmount(f"{directory}/jail", syscalls.MNT_DETACH)
    cold = guest is None
    if guest is None:
        guest = boot.start(plan.driver, plan.machine, directory=directory, tap=tap, deadline=deadline)
    log.debug("supervisor: VMM up and paused")
    guest.vm.plug_share(share, virtiofs.TAG, deadline=deadline)
    log.debug("supervisor: share plugged in")
    guest.vm.resume(deadline=deadline)
    log.debug("supervisor: guest resumed")
    if cold:
        guest.wait_hello(deadline=deadline)
    # only now is it the template that was to blame, and not the host
    return guest, template.drop(plan.template, broken) if broken else ""
