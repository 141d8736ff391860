"""`runvm install` and `uninstall`: an engine's configuration with and without this runtime."""

from __future__ import annotations

import os
import sys

from runvm.cli.globals import absolute
from runvm.cli.grammar import Command, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

_ENGINE = "<docker|podman|containerd>"
_DRY_RUN = Flag("dry-run", "show the change without making it", "n")

COMMAND = Command(
    "install",
    words=_ENGINE,
    min_args=1,
    max_args=1,
    flags=(
        _DRY_RUN,
        Flag("default", "make runvm the engine's default runtime"),
        Flag("runtime-path", "the program that the engine is to call (default: this one)", metavar="FILE"),
    ),
    description="Add runvm to the runtimes that an engine knows, by an edit of its configuration file: the change is "
    "shown, the rest of the file stays as it is. Run twice, it changes nothing more. 'runvm uninstall' undoes it.",
    examples=(
        ("Then 'systemctl reload docker', and 'docker run --runtime=runvm ...':", "runvm install docker"),
        ("", "runvm install --dry-run containerd"),
    ),
)
UNINSTALL = Command(
    "uninstall",
    words=_ENGINE,
    min_args=1,
    max_args=1,
    flags=(_DRY_RUN,),
    description="Undo what 'runvm install' did to an engine's configuration file.",
    examples=(("", "runvm uninstall docker"),),
)


def run(ctx: Context, args: Args) -> int:
    """Call the verb."""
    from runvm.host import engines

    engine, dry_run, data_dir = args.words[0], args.on("dry-run"), ctx.config.data_dir
    if args.command is UNINSTALL:
        return engines.uninstall(engine, dry_run=dry_run, data_dir=data_dir)
    path = args.text("runtime-path")
    return engines.install(
        engine,
        runtime_path=absolute(path) if path else this_program() or engines.DEFAULT_RUNTIME_PATH,
        default=args.on("default"),
        dry_run=dry_run,
        data_dir=data_dir,
    )


def this_program() -> str:
    """The path of the runvm that is running, '' if it was started in another way (python3 -m runvm)."""
    called = sys.argv[0] if sys.argv else ""
    # The kernel hands a script's interpreter the path that PATH led to
    if os.path.basename(called) != "runvm" or not os.access(called, os.X_OK) or not os.path.isfile(called):
        return ""
    return absolute(called)
