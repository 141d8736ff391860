"""`runvm spec`: a config.json to begin with."""

from __future__ import annotations

import os

from runvm.cli.common import path_of
from runvm.cli.globals import absolute
from runvm.cli.grammar import Command, Flag
from runvm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "spec",
    flags=(
        Flag("bundle", "the bundle's directory (default: the current one)", "b", metavar="DIR"),
        Flag("file", "write this file instead, even if it is there already", "f", metavar="FILE"),
        Flag("rootless", "a user namespace that maps root to the caller"),
    ),
    config=False,
    description="Write a config.json that 'runvm run' takes as it is: it runs sh on a terminal, the root filesystem is "
    "the bundle's directory rootfs, read-only. A config.json that is there already is left alone.",
    examples=(("", 'mkdir -p box/rootfs && cd box\nrunvm spec\nsed -i \'s;"sh";"/hello";\' config.json'),),
)


def run(ctx: Context, args: Args) -> int:
    """Write the file."""
    import json

    from runvm.oci.defaults import default_spec

    # runc's indentation: one tab
    text = json.dumps(default_spec(rootless=args.on("rootless")), indent="\t") + "\n"
    path, replace = target(args)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if replace else os.O_EXCL), 0o666)
    except FileExistsError:
        # runc's message
        raise UsageError(f"File {os.path.basename(path)} exists. Remove it first") from None
    with open(fd, "w") as file:
        file.write(text)
    return 0


def target(args: Args) -> tuple[str, bool]:
    """The file to write, and whether it may replace one (crun's --file does). --file is relative to the bundle."""
    bundle = path_of(args, "bundle")
    file = args.text("file")
    if file:
        return absolute(f"{bundle}/{file}" if bundle and not file.startswith("/") else file), True
    return absolute(f"{bundle}/config.json" if bundle else "config.json"), False
