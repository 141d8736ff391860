"""`runvm features`: what this runtime can, as JSON (OCI runtime spec 1.1, features.md)."""

from __future__ import annotations

from runvm.cli.common import write_json
from runvm.cli.grammar import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "features",
    description="Print, as JSON, which parts of the OCI runtime specification this runtime knows: versions, hooks, "
    "mount options, namespaces, capabilities, cgroups, seccomp.",
    examples=(("", "runvm features | jq .linux.namespaces"),),
)


def run(ctx: Context, args: Args) -> int:
    """Print what the verb finds."""
    from runvm.hypervisor import drivers
    from runvm.oci.features import features

    # engines ask at their start, and don't wait for a guest to boot
    hypervisor = drivers.known_name(ctx.config) or ctx.config.hypervisor
    write_json(features(ctx.config, hypervisor=hypervisor, checkpoint=_checkpoints(ctx)), indent=4)
    return 0


def _checkpoints(ctx: Context) -> bool:
    """Whether containers can be checkpointed here; not on a host where none would start."""
    from runvm.checkpoint import support
    from runvm.errors import RunvmError

    try:
        return not support.lacks(ctx.config)
    except RunvmError:
        return False
