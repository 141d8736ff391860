"""`create`: spec, sandbox, shim, hooks, guest, state, in one breath; each step lives in its own module."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from runvm.container import guest_spec, passed, shim, state, terminal
from runvm.container.state import ContainerRecord
from runvm.errors import DeadlineError, HostError, RunvmError, UnsupportedError, words
from runvm.linux import files, process, syscalls
from runvm.linux.process import Identity
from runvm.log import log
from runvm.protocol import frames, messages
from runvm.sandbox import placement, registry, resources, turns

if TYPE_CHECKING:
    import socket

    from runvm.config import Config
    from runvm.container.context import Context
    from runvm.container.options import CreateOptions
    from runvm.oci.spec import Spec

_START_SECONDS = 60
"""How long a virtual machine may take to start beside its guest's boot."""
_NEW = {"network": syscalls.CLONE_NEWNET, "ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}


def create(ctx: Context, cid: str, options: CreateOptions, *, terminal_master: list[int] | None = None) -> None:
    """Make the container and leave it created. With *terminal_master*, a terminal's master is appended there instead
    of sent away.

    Raises: RunvmError; nothing half-made is left then.
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
    terminal.check(spec.process.terminal, options.console_socket, own=terminal_master is not None)
    plan = guest_spec.plan(spec, cid)
    plan.spec["process"]["env"] = [*plan.spec["process"].get("env", ()), *passed.environment(listened)]
    if plan.notes:
        log.info(f"devices of the host that are not in the virtual machine: {', '.join(plan.notes)}")
    log.debug("create: config.json read")
    if placement.pod_of(spec):
        guest_spec.check_propagation(spec)
    place = placement.place(ctx.config, spec)
    network = _network(ctx, spec)
    with state.claim(ctx, cid), ExitStack() as failed:
        failed.callback(_clear, ctx, cid)
        _create(ctx, cid, spec, plan, place, network, options, handed, terminal_master)
        failed.pop_all()


def _create(
    ctx: Context,
    cid: str,
    spec: Spec,
    plan: guest_spec.GuestPlan,
    place: placement.Placement,
    network: bool,
    options: CreateOptions,
    handed: passed.Passed,
    terminal_master: list[int] | None,
) -> None:
    from runvm.config import load as load_config

    config = (
        load_config(annotations=spec.annotations)
        if any(k.startswith("io.runvm.") for k in spec.annotations)
        else ctx.config
    )
    config = config._replace(state_dir=ctx.config.state_dir)
    scope = None
    if ctx.cgroup_manager == "systemd":
        from runvm.sandbox import scope as scopes

        limits = resources.host_limits(spec.resources, overhead_mib=config.overhead_mib)
        scope = scopes.start(spec.cgroups_path, cid, limits)
    cgroup = resources.Cgroup(())
    if ctx.cgroup_manager != "disabled":
        cgroup = resources.planned(scope.path if scope is not None else spec.cgroups_path, cid)
    sandbox = place.sandbox or registry.new(ctx.config.state_dir)
    record = ContainerRecord(
        id=cid,
        status="creating",
        pid=0,
        bundle=spec.bundle,
        rootfs=spec.root_path,
        created=_now(),
        annotations=spec.annotations,
        oci_version=spec.oci_version,
        sandbox=sandbox.name,
        shim=Identity(0, 0),
        started=False,
        paused=False,
        config_path=spec.config_path,
        terminal=spec.process.terminal,
        cgroups=cgroup.directories,
        cgroup_shared=scope is None and cgroup.in_use(),
        namespaces={kind: path for kind, path in spec.namespaces.items() if path},
        complete=False,
        scope="" if scope is None else scope.name,
    )
    state.save(ctx, record)  # what outlives us is written down before it is made
    cgroup = resources.make(cgroup, rootless=ctx.rootless)
    record = record._replace(cgroups=cgroup.directories)
    cgroup.limit(spec.resources, overhead_mib=config.overhead_mib)
    log.debug("create: cgroup made")
    turn = -1
    if place.sandbox is None:
        turn = turns.take(ctx.config.state_dir)
    listener = registry.listen(sandbox) if place.sandbox is None else None
    connection = registry.connect(sandbox)
    connection.sendall(frames.encode(frames.MESSAGE, 0, messages.encode(messages.Attach(cid, "init"))))
    slave, master = -1, -1
    if spec.process.terminal:
        master, slave = terminal.open_pair(*spec.process.console_size)
    namespaces, opened = _namespaces(spec)
    execs = state.execs(ctx, cid)
    started = shim.start(
        shim.Plan(
            title=" ".join(spec.process.args),
            namespaces=namespaces,
            cgroup_procs=cgroup.procs,
            terminal=slave,
            rootfs=spec.root_path,
            connection=connection.fileno(),
            execs=execs,
            # elsewhere execs outlive it
            last=namespaces.pid_new,
            passed=handed,
            oom_score=spec.raw["process"].get("oomScoreAdj"),
        )
    )
    if scope is not None:
        scope.joined()
    for fd in (*opened, execs):
        os.close(fd)
    connection.close()
    shim_identity = process.identity(started.pid)
    if shim_identity is None:
        raise HostError("the container's process on the host ended at once")
    log.debug("create: shim started")
    record = record._replace(shim=shim_identity)
    state.save(ctx, record)
    report = -1
    if listener is not None:
        report = _launch(config, sandbox, spec, listener, started.pid if network else -1, cgroup)
        listener.close()
        log.debug("create: supervisor forked")
    kinds = tuple(kind for kind in placement.JOINED if kind in spec.namespaces)
    try:
        placement.enlist(sandbox, cid, started.pid, kinds, cgroup.directories, placement.pod_of(spec))
        _hooks(spec, cid, started.pid)
        log.debug("create: hooks done")
    except BaseException:
        if report >= 0:
            # a supervisor that is just coming up has to be there before it can be told to go
            with suppress(RunvmError):
                _await_launch(report, config)
        raise
    if report >= 0:
        _await_launch(report, config)
        log.debug("create: virtual machine runs")
    rows, columns = spec.process.console_size
    build = messages.Build(
        cid,
        plan.spec,
        plan.place,
        {name: share._asdict() for name, share in plan.shares.items()},
        place.joins,
        network,
        list(cgroup.directories),
        resources.limit_mib(spec.resources),
        resources.pod_mib(spec.annotations),
        started.pid,
        rows,
        columns,
        list(handed.ways),
        plan.notify,
    )
    # where a template proves broken only now, the supervisor boots instead
    answer = registry.call(sandbox, build, timeout=registry.ANSWER_SECONDS + config.boot_timeout_s)
    for note in answer.get("notes", ()):
        log.warning(note)
    log.debug("create: container built in the guest")
    if turn >= 0:
        os.close(turn)
    shim.release(started)
    if slave >= 0:
        os.close(slave)
    if master >= 0:
        if terminal_master is not None:
            terminal_master.append(master)
        else:
            terminal.send(options.console_socket, master)
            os.close(master)
    state.save(ctx, record._replace(complete=True))
    if options.pid_file:
        write_pid_file(options.pid_file, started.pid)
    log.debug("create: done")


def write_pid_file(path: str, pid: int) -> None:
    """The pid, by rename, so that who waits for the file never reads half of it. Raises HostError."""
    temporary = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # of a command that was killed
        with open(temporary, "w", opener=files.exclusive) as file:
            file.write(str(pid))
        os.rename(temporary, path)
    except OSError as error:
        raise HostError(f"write pid file {path}: {words(error)}") from error


def _network(ctx: Context, spec: Spec) -> bool:
    """Whether the container has a network namespace of its own. Raises UnsupportedError for the host's, unless the
    config allows the VM's."""
    path = spec.namespaces.get("network")
    if path is not None and not (path and guest_spec.same_namespace(path, "/proc/self/ns/net")):
        return True
    if ctx.config.host_network != "vm":
        raise UnsupportedError(
            "the host's network namespace can't be shared with a virtual machine",
            do='give the container a network of its own, or set host_network = "vm" in /etc/runvm/config.toml for the virtual machine\'s',  # noqa: E501
        )
    return False


def _namespaces(spec: Spec) -> tuple[shim.Namespaces, list[int]]:
    """The shim's namespaces on the host, as the caller asked for the container's."""
    new = syscalls.CLONE_NEWNS
    opened: list[int] = []
    join: list[int] = []
    pid_join = -1
    for kind, path in spec.namespaces.items():
        if kind in _NEW and not path:
            new |= _NEW[kind]
        elif path and kind in (*_NEW, "pid"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise HostError(f"{kind} namespace {path}: {words(error)}") from error
            opened.append(fd)
            if not process.is_namespace(fd, kind):
                raise HostError(f"{kind} namespace {path}: it isn't one")
            if kind == "pid":
                pid_join = fd
            else:
                join.append(fd)
    return shim.Namespaces(new, tuple(join), pid_join, spec.namespaces.get("pid") == ""), opened


def _launch(
    config: Config,
    sandbox: registry.Sandbox,
    spec: Spec,
    listener: socket.socket,
    shim_pid: int,
    cgroup: resources.Cgroup,
) -> int:
    """Fork the supervisor of a new VM; the descriptor on which it reports."""
    from runvm.guest import image
    from runvm.hypervisor import boot, driver, template
    from runvm.sandbox import launch
    from runvm.sandbox.plan import Plan

    chosen = driver.load(config)
    guest = image.resolve(config)
    most_mib = resources.most_mib(cgroup.room_mib())
    limits = resources.of_vm(spec.annotations, spec.resources)
    machine = boot.machine_for(
        config,
        chosen,
        guest,
        vcpus=resources.vcpus(config, limits),
        memory_mib=resources.base_mib(config, limits, most_mib),
    )
    directory = ""
    if config.template and chosen.can_snapshot:
        try:
            directory = template.ensure(config, chosen, machine)
        except (RunvmError, OSError) as error:
            log.warning(f"no template could be made, booting instead: {error}")
    namespace = os.open(f"/proc/{shim_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC) if shim_pid > 0 else -1
    reader, writer = os.pipe2(os.O_CLOEXEC)
    held = image.hold(guest)
    plan = Plan(
        config,
        chosen,
        machine,
        most_mib,
        directory,
        sandbox,
        guest.modules,
        namespace,
        held,
    )

    oom_score = spec.raw["process"].get("oomScoreAdj")
    process.orphan(lambda: launch.main(plan, cgroup.procs, oom_score, listener, writer))
    os.close(writer)
    for fd in (namespace, held):
        if fd >= 0:
            os.close(fd)
    return reader


def _await_launch(report: int, config: Config) -> None:
    """Until the VM runs. Raises RunvmError with what the supervisor says."""
    import select

    seconds = config.boot_timeout_s + _START_SECONDS
    poll = select.poll()
    poll.register(report, select.POLLIN)
    try:
        if not poll.poll(seconds * 1000):
            raise DeadlineError(f"timed out after {seconds} s waiting for the virtual machine to start")
        data = os.read(report, 65536)
        if data[:1] != b"\0":
            message, _, details = data[1:].decode(errors="replace").partition("\n")
            raise RunvmError(message or "the virtual machine's supervisor ended", details=details)
    finally:
        os.close(report)


def _hooks(spec: Spec, cid: str, pid: int) -> None:
    """prestart and createRuntime on the host, createContainer in the container's host namespaces (runtime.md,
    Lifecycle)."""
    if not any(spec.hooks.get(kind) for kind in ("prestart", "createRuntime", "createContainer")):
        return
    from runvm.oci import hooks

    found = hooks.state_json(
        cid=cid,
        status="creating",
        bundle=spec.bundle,
        pid=pid,
        annotations=spec.annotations,
        oci_version=spec.oci_version,
    )
    for kind in ("prestart", "createRuntime"):
        hooks.run(spec.hooks.get(kind, ()), found, cwd=spec.bundle, name=kind)

    def enter() -> None:
        fds = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("net", "ipc", "uts", "mnt")]
        for fd in fds:
            syscalls.setns(fd)

    if spec.hooks.get("createContainer"):
        hooks.run(spec.hooks["createContainer"], found, cwd=spec.root_path, name="createContainer", enter=enter)


def _clear(ctx: Context, cid: str) -> None:
    from runvm.container.delete import clear

    clear(ctx, cid)


def _now() -> str:
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"
