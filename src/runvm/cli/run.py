"""`runvm run`: create and start in one; in the foreground its exit code is the container's."""

from __future__ import annotations

from runvm.cli.common import CREATE_FLAGS, ID, container_id, create_options
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "run",
    words=ID,
    min_args=1,
    max_args=1,
    flags=(
        *CREATE_FLAGS,
        Flag("no-subreaper", "don't stay the one that processes are left to whose parents have ended"),
        Flag("detach", "return as soon as the container runs", "d"),
        Flag("keep", "keep the stopped container's state; 'runvm delete' removes it"),
    ),
    description="Make a container and start its process. Without --detach, runvm waits, passes signals on, removes the "
    "container afterwards and ends with its exit code (128 and the signal's number if a signal ended it). Where "
    "config.json has process.terminal, the caller's terminal is the container's.",
    examples=(
        ("A bundle of busybox, run from its directory:", "mkdir rootfs && docker export busybox1 | tar -C rootfs -x\n"
         "runvm spec\nrunvm run box1"),
        ("In the background, as a systemd unit of Type=forking would:",
         "runvm run --detach --bundle /srv/web --pid-file /run/web.pid web1"),
    ),
)  # fmt: skip


def run(ctx: Context, args: Args) -> int:
    """Call the verb; the container's exit code, or 0 once it runs detached."""
    from runvm.container.run import run as run_container

    cid = container_id(args)
    options = create_options(args)
    return run_container(
        ctx, cid, options, detach=args.on("detach"), keep=args.on("keep"), no_subreaper=args.on("no-subreaper")
    )
