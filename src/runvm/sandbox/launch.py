"""How a supervisor comes to be: forked by `create`, it starts virtiofsd and the VM, then serves until the last
container has gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time

from runvm.errors import RunvmError
from runvm.hypervisor import boot, template
from runvm.linux import process, syscalls, userns
from runvm.log import log
from runvm.protocol.frames import FrameError
from runvm.sandbox import registry
from runvm.sandbox.networks import Networks
from runvm.sandbox.supervisor import Plan, Supervisor
from runvm.shares import tree, virtiofs


def main(plan: Plan, listener: socket.socket, report: int) -> None:
    """The life of a supervisor, in the forked process. One byte on *report* tells the command that the VM runs, a
    text that it doesn't."""
    log.debug("supervisor: forked")
    os.setsid()
    syscalls.set_name("runvm-sandbox")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # an engine's stop of a whole process group isn't meant for the VM
    out = os.open(f"{plan.sandbox.directory}/supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    process.redirect(out)
    keep = [listener.fileno(), report] + ([fd for fd in (plan.namespace, plan.held) if fd >= 0])
    process.close_above(2, tuple(keep))
    log.path = ""
    registry.record(plan.sandbox, {"supervisor": os.getpid()})
    # in a user namespace there is no way back from a container's network to the host's, only to one of our own
    syscalls.unshare(syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWNET if userns.limited() else 0))
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    os.chdir("/")
    supervisor = None
    try:
        supervisor = _supervisor(plan, listener)
        os.write(report, b"\0")
        os.close(report)
        supervisor.run()
    except (RunvmError, OSError, FrameError) as error:
        details = getattr(error, "details", "")
        log.error(str(error), details)
        if supervisor is None:
            os.write(report, b"\1" + "\n".join(part for part in (str(error), details) if part).encode()[:32768])
    finally:
        if supervisor is None or not os.environ.get("RUNVM_KEEP"):
            for name in ("jail", "share"):
                try:
                    syscalls.unmount(f"{plan.sandbox.directory}/{name}", syscalls.MNT_DETACH)
                except OSError:
                    continue
            shutil.rmtree(plan.sandbox.directory, ignore_errors=True)


def _supervisor(plan: Plan, listener: socket.socket) -> Supervisor:
    """Everything of a VM, running. Raises RunvmError, OSError."""
    share = tree.Tree(f"{plan.sandbox.directory}/share")
    if plan.modules:
        share.show_modules(plan.modules)
    daemon = virtiofs.serve(plan.config, share.path, log=f"{plan.sandbox.directory}/virtiofsd.log")
    log.debug("supervisor: virtiofsd forked")
    networks = Networks()
    tap = networks.first_tap(plan.namespace) if plan.namespace >= 0 else template.scratch_tap()
    log.debug("supervisor: tap made")
    guest = _start_guest(plan, tap, daemon.socket)
    os.close(tap)
    registry.record(plan.sandbox, {"supervisor": os.getpid(), "vmm": guest.vm.pid, "virtiofsd": daemon.pid})
    return Supervisor(plan, listener, guest, daemon, share, networks)


def _start_guest(plan: Plan, tap: int, share: socket.socket) -> boot.Guest:
    """Start the VM from its template, or boot it where there is none or it fails; then plug the share in and let
    it run."""
    deadline = time.monotonic() + plan.config.boot_timeout_s
    directory = plan.sandbox.directory
    guest = None
    if plan.template:
        try:
            guest = boot.start(
                plan.driver, plan.machine, directory=directory, tap=tap, template=plan.template, deadline=deadline
            )
        except (RunvmError, OSError) as error:
            log.warning(f"starting from the template failed, booting instead: {error}")
            template.drop(plan.config, plan.template)
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
    return guest
