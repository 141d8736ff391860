"""`runvm version` and `runvm --version`, shaped as runc's and crun's: podman and dockerd parse it."""

from __future__ import annotations

import sys

import runvm
from runvm.cli.common import write
from runvm.cli.grammar import Command
from runvm.oci import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "version",
    config=False,
    description="Print the versions of runvm, of the OCI runtime specification that it follows, and of its Python.",
    examples=(("", "runvm --version"),),
)


def run(ctx: Context, args: Args) -> int:
    """Print it."""
    write(text())
    return 0


def text() -> str:
    """The first line is `NAME version X`; then `key: value` lines."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return f"runvm version {runvm.__version__}\nspec: {OCI_VERSION}\npython: {python}\n"
