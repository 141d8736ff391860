"""`runvm restore`: a container that goes on from a checkpoint."""

from __future__ import annotations

from runvm.cli.checkpoint import CRIUS, IMAGE_PATH, LAZY, check, image_path
from runvm.cli.common import CONSOLE_SOCKET, ID, PID_FILE, container_id, path_of
from runvm.cli.globals import absolute
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "restore",
    words=ID,
    min_args=1,
    max_args=1,
    flags=(
        IMAGE_PATH,
        Flag("bundle", "the bundle's directory (default: the current one)", "b", metavar="DIR"),
        CONSOLE_SOCKET,
        PID_FILE,
        Flag("detach", "return as soon as the container runs", "d"),
        Flag("no-subreaper", "don't stay the one that processes are left to whose parents have ended"),
        Flag("no-pivot", "", hidden=True),
        *CRIUS,
        LAZY,
        Flag("lsm-profile", "", metavar="PROFILE", hidden=True),
        Flag("lsm-mount-context", "", metavar="CONTEXT", hidden=True),
    ),
    description="Make a container that goes on where 'runvm checkpoint' has saved one, with the bundle's files, "
    "mounts, network and limits. The bundle must have the same mounts, devices, user, capabilities and seccomp filter; "
    "the files that were open must be there. One checkpoint can be restored many times, under other names and at "
    "once. Without --detach, runvm waits as 'runvm run' does.",
    examples=(("", "runvm restore --detach --image-path /var/lib/saved/web1 --bundle /srv/web web2"),),
)


def run(ctx: Context, args: Args) -> int:
    """Call the verb; the container's exit code, or 0 once it runs detached."""
    cid = container_id(args)
    check(args, (LAZY.name,))
    from runvm.container.options import CreateOptions
    from runvm.container.run import run_restored

    options = CreateOptions(
        bundle=absolute(args.text("bundle") or "."),
        console_socket=path_of(args, "console-socket"),
        pid_file=path_of(args, "pid-file"),
    )
    return run_restored(
        ctx, cid, options, image_path(args), detach=args.on("detach"), no_subreaper=args.on("no-subreaper")
    )
