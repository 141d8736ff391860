"""`runvm checkpoint`: save a running container. The flags are runc's and crun's; those that mean CRIU's ways of dealing
with sockets and locks mean nothing here, where the whole virtual machine is saved."""

from __future__ import annotations

from runvm.cli.common import ID, container_id, path_of
from runvm.cli.globals import absolute
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

DEFAULT_IMAGE = "checkpoint"
IMAGE_PATH = Flag("image-path", "the checkpoint's directory (default: ./checkpoint)", metavar="DIR")
CRIUS = (
    Flag("work-path", "", metavar="DIR", hidden=True),
    Flag("tcp-established", "", hidden=True),
    Flag("tcp-skip-in-flight", "", hidden=True),
    Flag("ext-unix-sk", "", "ext-unix", hidden=True),
    Flag("shell-job", "", hidden=True),
    Flag("file-locks", "", hidden=True),
    Flag("link-remap", "", hidden=True),
    Flag("manage-cgroups-mode", "", metavar="MODE", hidden=True),
    Flag("empty-ns", "", metavar="NAMESPACE", many=True, hidden=True),
    Flag("auto-dedup", "", hidden=True),
    Flag("network-lock", "", metavar="METHOD", hidden=True),
)
"""Taken and done without: what they ask for goes by itself, or is a way of CRIU's."""
LAZY = Flag("lazy-pages", "", hidden=True)
_SILENT = frozenset({"work-path", "tcp-established", "ext-unix-sk", "shell-job", "file-locks", "link-remap"})
"""Those whose wish is granted."""

COMMAND = Command(
    "checkpoint",
    words=ID,
    min_args=1,
    max_args=1,
    flags=(
        IMAGE_PATH,
        Flag("leave-running", "let the container go on"),
        Flag("compress", "compress its memory, by zstd"),
        *CRIUS,
        LAZY,
        Flag("parent-path", "", metavar="DIR", hidden=True),
        Flag("status-fd", "", metavar="FD", hidden=True),
        Flag("page-server", "", metavar="ADDRESS", hidden=True),
        Flag("pre-dump", "", hidden=True),
    ),
    description="Save a running container, all its processes with their memory and open files, in a directory from "
    "which 'runvm restore' lets it go on, once or many times. The container ends with that, and is deleted, unless "
    "--leave-running is given. Needs QEMU 9 and virtiofsd 1.11 or later.",
    examples=(
        ("", "runvm checkpoint --image-path /var/lib/saved/web1 web1"),
        ("A copy of what runs:", "runvm checkpoint --leave-running --image-path /var/lib/saved/web1 web1"),
    ),
)


def image_path(args: Args) -> str:
    """The checkpoint's directory, absolute."""
    return path_of(args, "image-path") or absolute(DEFAULT_IMAGE)


def check(args: Args, refused: tuple[str, ...]) -> None:
    """Say which flags do nothing; raise UnsupportedError for those of *refused*, which a caller relies on."""
    from runvm.errors import UnsupportedError
    from runvm.log import log

    for name in refused:
        if args.given(name) and args.text(name) != "false":
            raise UnsupportedError(f"--{name} is not supported by runvm: the whole virtual machine is saved at once")
    ignored = [
        flag.name for flag in args.command.flags if flag.hidden and args.given(flag.name) and flag.name not in _SILENT
    ]
    if ignored:
        log.info(f"--{', --'.join(ignored)}: without effect, the whole virtual machine is saved")


def run(ctx: Context, args: Args) -> int:
    """Call the verb."""
    cid = container_id(args)
    check(args, ("pre-dump", LAZY.name, "page-server"))
    from runvm.container.checkpoint import CheckpointOptions, checkpoint

    options = CheckpointOptions(image_path(args), leave_running=args.on("leave-running"), compress=args.on("compress"))
    checkpoint(ctx, cid, options)
    return 0
