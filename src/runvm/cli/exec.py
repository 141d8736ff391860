"""`runvm exec`: one more process in a running container.

Exit codes as runc's: the process's own (128 and the signal's number if a signal ended it), 255 where it couldn't be run
(crun: 255 or 1), 1 for a wrong command line. Docker and podman make 126 and 127 of the message, not of the code.
"""

from __future__ import annotations

import os

from runvm.cli.common import (
    CONSOLE_SOCKET,
    ID,
    PID_FILE,
    PIDFD_SOCKET,
    PRESERVE_FDS,
    WITHOUT_EFFECT,
    checked_id,
    path_of,
    preserved_fds,
)
from runvm.cli.grammar import Command, Flag, parse_number
from runvm.errors import RunvmError, UnsupportedError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context
    from runvm.container.options import ExecOptions
    from runvm.oci.shapes import JsonObject

_FAILED = 255

COMMAND = Command(
    "exec",
    words=f"{ID} <command> [argument ...]",
    min_args=1,
    max_args=-1,
    hands_on=True,
    flags=(
        Flag("process", "the process as JSON, as config.json has it: instead of a command and the flags about it", "p",
             metavar="FILE"),
        Flag("tty", "give it a terminal", "t"),
        Flag("detach", "return as soon as it runs", "d"),
        Flag("user", "run it as this user (and group)", "u", metavar="UID[:GID]"),
        Flag("additional-gids", "one more group of it; may be repeated", "g", metavar="GID", number=True, many=True),
        Flag("cwd", "its working directory in the container", metavar="DIR"),
        Flag("env", "one more environment variable; may be repeated", "e", metavar="NAME=VALUE", many=True),
        Flag("cap", "one more capability; may be repeated", "c", metavar="CAP", many=True),
        Flag("no-new-privs", "it can't gain privileges by what it executes"),
        CONSOLE_SOCKET,
        PID_FILE,
    PIDFD_SOCKET,
        PRESERVE_FDS,
        Flag("cgroup", "run it in this cgroup below the container's, which must exist", metavar="PATH", many=True),
        Flag("ignore-paused", "in a paused container, wait until it is resumed, and run it then"),
        Flag("process-label", f"{WITHOUT_EFFECT}: the guest has no SELinux", metavar="LABEL"),
        Flag("apparmor", f"{WITHOUT_EFFECT}: the guest has no AppArmor", metavar="PROFILE"),
    ),
    description="Run a command in a running container. It has the user, environment, capabilities and directory of the "
    "container's own process, but for what the flags change. Flags stand before the id: what follows it is the "
    "command. Ends with the command's exit code (128 and the signal's number if a signal ended it), with 255 if "
    "it can't be run.",
    examples=(
        ("A shell:", "runvm exec --tty web1 sh"),
        ("As another user, elsewhere:", "runvm exec -u 1000:1000 --cwd /srv -e LANG=C web1 ls -l"),
        ("As an engine calls it:", "runvm exec --process /tmp/p.json --detach --pid-file /tmp/p.pid web1"),
    ),
)  # fmt: skip


def run(ctx: Context, args: Args) -> int:
    """Call the verb; the process's exit code, or 0 once it runs detached."""
    try:
        cid = checked_id(args.words[0])
        from runvm.container import exec as verb

        return verb.exec_process(ctx, cid, options(args, lambda: verb.base_process(ctx, cid)))
    except RunvmError as error:
        if error.exit_code == RunvmError.exit_code:
            error.exit_code = _FAILED
        raise


def options(args: Args, base_process: Callable[[], JsonObject]) -> ExecOptions:
    """What the verb is asked for; *base_process* gives the container's own process where one is to be built on it."""
    from runvm.container.options import ExecOptions

    process = _process(args, base_process)
    return ExecOptions(
        process=process,
        console_socket=path_of(args, "console-socket"),
        pid_file=path_of(args, "pid-file"),
        pidfd_socket=path_of(args, "pidfd-socket"),
        detach=args.on("detach"),
        preserve_fds=preserved_fds(args),
        cgroup=sub_cgroup(args.texts("cgroup")),
        ignore_paused=args.on("ignore-paused"),
    )


def sub_cgroup(given: list[str]) -> str:
    """The one path of --cgroup. A path for a controller is for cgroups of version 1; the guest has version 2, where
    runc refuses it with this message."""
    for each in given:
        controllers, colon, path = each.partition(":")
        if ":" in path or (not colon and len(given) > 1):
            missing = "" if colon else " (missing <controller>: prefix)"
            raise UsageError(f"invalid --cgroup argument: {each}{missing}")
        if colon:
            controller = controllers.partition(",")[0]
            raise UnsupportedError(
                f"unknown controller {controller} in SubCgroupPaths",
                do="the guest's cgroups are of version 2: give a path without controllers",
            )
    path = given[0] if given else ""
    relative = os.path.normpath(f"./{path}")
    if relative.partition("/")[0] == "..":
        raise UsageError(f"{path} is not a sub cgroup path")
    return "" if relative == "." else relative


def _process(args: Args, base_process: Callable[[], JsonObject]) -> JsonObject:
    file = path_of(args, "process")
    if file:
        # Whatever flags and words stand beside it: runc and crun take all from the file as well
        from runvm.oci.spec import load_process

        return load_process(file)
    if len(args.words) < 2:
        raise UsageError("process args cannot be empty", do="give a command after the id, or --process")
    from runvm.oci.process import exec_process

    return exec_process(
        base_process(),
        args=args.words[1:],
        cwd=args.text("cwd"),
        env=args.texts("env"),
        user=args.text("user"),
        additional_gids=[parse_number(gid) for gid in args.texts("additional-gids")],
        caps=args.texts("cap"),
        tty=args.on("tty"),
        no_new_privs=args.on("no-new-privs") if args.given("no-new-privs") else None,
        apparmor=args.text("apparmor"),
        process_label=args.text("process-label"),
    )


if TYPE_CHECKING:
    from collections.abc import Callable
