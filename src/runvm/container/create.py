"""`create`: plan, cgroup, virtual machine, shim, hooks, guest, state, in one breath; each step lives in its own
module."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from runvm.cgroup import cgroup as cgroups
from runvm.container import environment, gate, interrupts, shim, state
from runvm.container.host_view import Made
from runvm.container.launching import Launch
from runvm.container.state import ContainerRecord
from runvm.errors import HostError, NotRunningError, reason
from runvm.linux import process, seccomp_filter, syscalls
from runvm.linux.architecture import is_foreign
from runvm.linux.process import Identity
from runvm.log import log
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, placement, registry, sizes, start_slots
from runvm.sandbox.members import INIT

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from runvm.cgroup.cgroup import Cgroup
    from runvm.cgroup.scope import Scope
    from runvm.container.context import Context
    from runvm.container.gate import StartedShim
    from runvm.container.options import CreateOptions
    from runvm.container.plans import ContainerPlan
    from runvm.oci.spec import Spec
    from runvm.sandbox.placement import Placement
    from runvm.sandbox.registry import Sandbox

_NEW = {"network": syscalls.CLONE_NEWNET, "ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}

_HOOKS = ("prestart", "createRuntime", "createContainer")


def create(
    ctx: Context,
    cid: str,
    plan: ContainerPlan,
    options: CreateOptions,
    *,
    terminal_master: list[int] | None = None,
    warm: tuple[str, str] = ("", ""),
) -> None:
    """Make the container and leave it created. With *terminal_master*, a terminal's master is appended there instead
    of sent away; *warm* is for its record.

    Raises: RunvmError; nothing half-made is left then.
    """
    with making(ctx, cid) as (failed, held):
        creation = Creation(ctx, cid, plan, failed, held)
        creation.make_cgroup()
        creation.keep_warm(*warm)
        with placement.placed(plan.config, plan.spec, cid) as place, explaining(place.sandbox):
            creation.start_shim(place)
            creation.start_vm()
            creation.enlist(place)
        creation.make_view()
        creation.make_filter()
        with explaining(place.sandbox):
            creation.await_vm(place)
            creation.create_in_guest(place)
        creation.release(options, terminal_master)
    log.debug("create: done")


@contextmanager
def making(ctx: Context, cid: str) -> Iterator[tuple[ExitStack, ExitStack]]:
    """A new container's directory, locked, while it is made: see Creation for the two. Where that fails, or a signal
    ends it, nothing is left of it. Raises ContainerExistsError."""
    with state.claim(ctx, cid), ExitStack() as failed, ExitStack() as held:
        failed.callback(clear, ctx, cid)
        with interrupts.raising():
            yield failed, held
        failed.pop_all()


class Creation:
    """The steps of one `create`. What *failed* holds is undone where one fails, what *held* holds is let go in any
    case."""

    def __init__(self, ctx: Context, cid: str, plan: ContainerPlan, failed: ExitStack, held: ExitStack) -> None:
        self.started: StartedShim
        self._ctx = ctx
        self._cid = cid
        self._plan = plan
        self._failed = failed
        self._held = held
        self._scope: Scope | None = None
        self._cgroup: Cgroup
        self._record: ContainerRecord
        self._launch: Launch
        self._place: Placement
        self._listener: socket.socket | None = None
        self._report: int | None = None
        self._patience = float(plan.config.boot_timeout_s)
        """Seconds that the virtual machine may take to start."""
        view = plan.guest.view
        # in the shim's mount namespace the container's own directory is covered by it
        self._view = view._replace(at=state.directory(ctx, cid)) if view.rootfs != "/" else None

    def make_cgroup(self) -> None:
        """The container's cgroup on the host, or systemd's scope; what outlives us is written down before it is
        made."""
        ctx, spec, config = self._ctx, self._plan.spec, self._plan.config
        if ctx.cgroup_manager == "systemd":
            from runvm.cgroup import limits
            from runvm.cgroup import scope as scopes

            host = limits.host_limits(spec.resources, overhead_mib=config.overhead_mib)
            # quota and shares hold from `start` on
            host = host._replace(quota=0, shares=0)
            self._scope = scopes.start(spec.cgroups_path, self._cid, host, spec.annotations)
        planned = cgroups.Cgroup(())
        if ctx.cgroup_manager != "disabled":
            planned = cgroups.planned(self._scope.path if self._scope is not None else spec.cgroups_path, self._cid)
        if self._scope is None:
            planned.check_free()
        self._record = ContainerRecord(
            id=self._cid,
            status="creating",
            pid=0,
            bundle=spec.bundle,
            rootfs=spec.root_path,
            created=_now(),
            annotations=spec.annotations,
            oci_version=spec.oci_version,
            sandbox="",
            shim=Identity(0, 0),
            started=False,
            paused=False,
            terminal=spec.process.terminal,
            cgroups=planned.directories,
            cgroup_shared=self._scope is None and planned.in_use(),
            namespaces={kind: path for kind, path in spec.namespaces.items() if path},
            complete=False,
            scope="" if self._scope is None else self._scope.name,
        )
        state.save_config(ctx, self._cid, spec.text)
        state.save(ctx, self._record)
        self._cgroup = cgroups.make(planned, rootless=ctx.rootless)
        self._cgroup.limit(spec.resources, overhead_mib=config.overhead_mib)
        log.debug("create: cgroup made")

    def keep_warm(self, key: str, upper: str) -> None:
        """See ContainerRecord."""
        self._record = self._record._replace(warm=key, upper=upper)

    def start_shim(self, place: Placement) -> None:
        """The container's process on the host, in its namespaces and its cgroup."""
        spec = self._plan.spec
        self._place = place
        self._record = self._record._replace(
            sandbox=place.sandbox.name, cgroups=self._cgroup.directories, arch=place.arch
        )
        state.save(self._ctx, self._record)
        if place.new:
            self._held.callback(os.close, start_slots.take(self._ctx.config.state_dir))
            self._listener = self._held.enter_context(registry.listen(place.sandbox))
        cpu_limits.note(place.sandbox, self._cid, self._cgroup.directories, spec.resources.get("cpu", {}))
        self._held.enter_context(cpu_limits.lifted(place.sandbox))
        console_size = spec.process.console_size if spec.process.terminal else None
        self._launch = Launch(place.sandbox, self._cid, INIT, self._held, console_size=console_size)
        namespaces = _namespaces(spec, self._held)
        with interrupts.postponed():
            self.started = self._launch.start(
                title=list(spec.process.args),
                namespaces=namespaces,
                cgroup_procs=self._cgroup.procs,
                view=self._view,
                # in a namespace that it has joined it isn't process 1
                last=namespaces.pid_new,
                passed=self._plan.handed,
                oom_score=spec.raw["process"].get("oomScoreAdj"),
            )
            if self._scope is not None:
                self._scope.joined()
            identity = process.identity(self.started.pid)
            if identity is None:
                raise HostError("the container's process on the host ended at once")
            log.debug("create: shim started")
            self._record = self._record._replace(shim=identity)
            state.save(self._ctx, self._record)

    def start_vm(self) -> None:
        """The supervisor of a new VM. Raises RunvmError, OSError."""
        plan = self._plan

        def start(listener: socket.socket, network_of: Identity | None) -> int:
            from runvm.sandbox import launch

            return launch.start(
                plan.config, self._place.sandbox, plan.spec, self._cgroup, listener, network_of=network_of
            )

        self.fork_supervisor(start)

    def fork_supervisor(self, start: Callable[[socket.socket, Identity | None], int]) -> None:
        """Have *start* fork it, where the VM is new; it gets the sandbox's listener and who has the container's network
        (None: nobody), and returns where the supervisor reports."""
        if self._listener is None:
            return
        with interrupts.postponed():
            self._report = start(self._listener, self._record.shim if self._plan.network else None)
            # a supervisor that is just coming up has to be there before it can be told to go
            self._failed.callback(self._await_quietly, self._place)
        self._listener.close()
        log.debug("create: supervisor forked")

    def enlist(self, place: Placement) -> None:
        """From here on others find the container in its VM."""
        spec = self._plan.spec
        kinds = tuple(kind for kind in placement.JOINED if kind in spec.namespaces)
        pod = placement.pod_of(spec)
        placement.enlist(place.sandbox, self._cid, self._record.shim, kinds, self._cgroup.directories, pod, place.arch)
        if pod and not place.new:
            from runvm.container import accounting

            accounting.settle(self._plan.config, place.sandbox)

    def make_view(self) -> None:
        """The container's mounts as the host sees them, and the mount points that the guest is to find; then the hooks
        that `create` runs, which find them. Raises HostError, HookError."""
        spec, guest = self._plan.spec, self._plan.guest
        hooks = any(spec.hooks.get(kind) for kind in _HOOKS)
        if self._view is not None:
            guest.settle(gate.show(self.started, for_hooks=hooks))
            log.debug("create: mounts made on the host")
        else:
            guest.settle(Made({}, environment.home_of(self.started.pid, spec.process.uid)))
        if hooks:
            _run_hooks(spec, self._cid, self._record.shim)
            if self._view is not None:
                guest.add(gate.end_hooks(self.started), self._view.at, len(spec.mounts))

    def make_filter(self) -> None:
        """The seccomp filter, while the virtual machine starts."""
        if not is_foreign(self._plan.config.arch):
            seccomp_filter.annotate(self._plan.guest.spec, only_known=True)

    def await_vm(self, place: Placement) -> str:
        """Until a new VM runs: why it isn't that of the checkpoint that it was to be, or ''. Raises RunvmError with
        what its supervisor says."""
        note = ""
        if self._report is not None:
            from runvm.sandbox import launch

            report, self._report = self._report, None
            note = launch.await_running(report, place.sandbox, self._patience)
            log.debug("create: virtual machine runs")
        return note

    def create_in_guest(self, place: Placement) -> None:
        """Have the supervisor make the container in the guest."""
        plan, spec = self._plan, self._plan.spec
        rows, columns = spec.process.console_size
        request = messages.CreateContainer(
            self._cid,
            plan.guest.spec,
            plan.guest.place,
            {name: share._asdict() for name, share in plan.guest.shares.items()},
            place.joins,
            plan.network,
            list(self._cgroup.directories),
            sizes.limit_mib(spec.resources),
            sizes.pod_mib(spec.annotations),
            *self._record.shim,
            rows,
            columns,
            list(plan.handed.ways),
            plan.guest.notify,
            plan.guest.sockets,
        )
        # where a template proves broken only now, the supervisor boots instead
        timeout = registry.ANSWER_SECONDS + plan.config.boot_timeout_s
        answer = registry.call(place.sandbox, request, timeout=timeout)
        self.note_hypervisor(str(answer.get("hypervisor", "")), str(answer.get("accelerator", "")))
        for note in answer.get("notes", ()):
            log.warning(note)
        log.debug("create: container created in the guest")

    def note_hypervisor(self, hypervisor: str, accelerator: str) -> None:
        """For `state`: what the container's VM runs on."""
        self._record = self._record._replace(hypervisor=hypervisor, accelerator=accelerator)

    def release(self, options: CreateOptions, terminal_master: list[int] | None, *, started: bool = False) -> None:
        """The shim takes its streams over, the caller gets what it asked for, the container is complete."""
        master = self._launch.release(
            self.started, console_socket=options.console_socket, pid_file="", pidfd_socket=options.pidfd_socket
        )
        if master >= 0:
            assert terminal_master is not None  # terminal.check()
            terminal_master.append(master)
        state.save(self._ctx, self._record._replace(complete=True, started=started))
        if options.pid_file:
            from runvm.container.launching import write_pid_file

            write_pid_file(options.pid_file, self.started.pid)

    def _await_quietly(self, place: Placement) -> None:
        from runvm.errors import RunvmError

        try:
            self.await_vm(place)
        except RunvmError as error:
            log.debug(f"create: the virtual machine didn't come up: {error}")


@contextmanager
def explaining(sandbox: Sandbox) -> Iterator[None]:
    """That the VM has ended comes with the cause of it."""
    try:
        yield
    except NotRunningError as error:
        from runvm.sandbox import diagnosis

        raise diagnosis.explained(error, sandbox) from None


def _namespaces(spec: Spec, held: ExitStack) -> shim.Namespaces:
    """The shim's namespaces on the host, as the caller asked for the container's; *held* closes their descriptors."""
    new = syscalls.CLONE_NEWNS
    join: list[int] = []
    pid_join = -1
    for kind, path in spec.namespaces.items():
        if kind in _NEW and not path:
            new |= _NEW[kind]
        elif path and kind in (*_NEW, "pid"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise HostError(f"{kind} namespace {path}: {reason(error)}") from error
            held.callback(os.close, fd)
            if not process.is_namespace(fd, kind):
                raise HostError(f"{kind} namespace {path}: it isn't one")
            if kind == "pid":
                pid_join = fd
            else:
                join.append(fd)
    return shim.Namespaces(new, tuple(join), pid_join, spec.namespaces.get("pid") == "")


def _run_hooks(spec: Spec, cid: str, shim: Identity) -> None:
    """prestart and createRuntime on the host, createContainer in the container's host namespaces (runtime.md,
    Lifecycle)."""
    from runvm.oci import hooks

    found = hooks.state_json(
        cid=cid,
        status="creating",
        bundle=spec.bundle,
        pid=shim.pid,
        annotations=spec.annotations,
        oci_version=spec.oci_version,
    )
    for kind in ("prestart", "createRuntime"):
        hooks.run(spec.hooks.get(kind, ()), found, cwd=spec.bundle, name=kind)

    def enter() -> None:
        fds = [process.open_namespace(shim, kind) for kind in ("network", "ipc", "uts", "mount")]
        for fd in fds:
            syscalls.setns(fd)

    if spec.hooks.get("createContainer"):
        hooks.run(spec.hooks["createContainer"], found, cwd=spec.root_path, name="createContainer", enter=enter)
    log.debug("create: hooks done")


def clear(ctx: Context, cid: str) -> None:
    """Take away what a create that failed has left."""
    from runvm.container import delete

    delete.clear(ctx, cid, failed=True)


def _now() -> str:
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"
