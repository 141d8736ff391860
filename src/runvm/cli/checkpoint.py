"""`runvm checkpoint` and `restore`: refused at once, and whatever flags of CRIU are given, so that callers see why."""

from __future__ import annotations

from runvm.cli.common import CONSOLE_SOCKET, ID, PID_FILE
from runvm.cli.grammar import Command, Flag
from runvm.errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

_COMMON = (
    Flag("image-path", "", metavar="DIR", hidden=True),
    Flag("work-path", "", metavar="DIR", hidden=True),
    Flag("tcp-established", "", hidden=True),
    Flag("ext-unix-sk", "", "ext-unix", hidden=True),
    Flag("shell-job", "", hidden=True),
    Flag("lazy-pages", "", hidden=True),
    Flag("file-locks", "", hidden=True),
    Flag("manage-cgroups-mode", "", metavar="MODE", hidden=True),
    Flag("empty-ns", "", metavar="NAMESPACE", many=True, hidden=True),
    Flag("auto-dedup", "", hidden=True),
)
_SAY = "Not supported: a container's processes are those of another kernel, where CRIU on the host can't reach them."

COMMAND = Command(
    "checkpoint",
    words=ID,
    most=-1,
    config=False,
    flags=(
        *_COMMON,
        Flag("parent-path", "", metavar="DIR", hidden=True),
        Flag("leave-running", "", hidden=True),
        Flag("status-fd", "", metavar="FD", hidden=True),
        Flag("page-server", "", metavar="ADDRESS", hidden=True),
        Flag("pre-dump", "", hidden=True),
    ),
    description=_SAY,
)
RESTORE = Command(
    "restore",
    words=ID,
    most=-1,
    config=False,
    flags=(
        *_COMMON,
        Flag(CONSOLE_SOCKET.name, "", metavar="SOCKET", hidden=True),
        Flag(PID_FILE.name, "", metavar="FILE", hidden=True),
        Flag("bundle", "", "b", metavar="DIR", hidden=True),
        Flag("detach", "", "d", hidden=True),
        Flag("no-subreaper", "", hidden=True),
        Flag("no-pivot", "", hidden=True),
        Flag("lsm-profile", "", metavar="PROFILE", hidden=True),
        Flag("lsm-mount-context", "", metavar="CONTEXT", hidden=True),
    ),
    description=_SAY,
)


def run(ctx: Context, args: Args) -> int:
    """Fail, whatever the arguments."""
    raise UnsupportedError(f"{args.command.name} is not supported by runvm")
