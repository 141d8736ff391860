"""`runvm state`: a container's state as JSON."""

from __future__ import annotations

from runvm.cli.common import ID, container_id, write_json
from runvm.cli.grammar import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context
    from runvm.container.state import ContainerRecord

COMMAND = Command(
    "state",
    words=ID,
    min_args=1,
    max_args=1,
    description="Print the container's state as JSON, as the OCI runtime specification has it, with rootfs, created "
    "and owner in addition, as runc has them, and with the hypervisor and the accelerator of its virtual machine. The "
    "status is creating, created, running, paused or stopped. The pid is that of a process on the host that lives as "
    "long as the container's own first process; 0 once it has stopped.",
    examples=(("", "runvm state web1 | jq -r .status"),),
)


def run(ctx: Context, args: Args) -> int:
    """Print what the verb finds."""
    from runvm.container import state

    write_json(describe(state.load(ctx, container_id(args))), indent=2)
    return 0


def describe(record: ContainerRecord) -> dict[str, object]:
    """The state's JSON object, key by key as runc 1.1 orders it (libcontainer's containerState)."""
    described: dict[str, object] = {
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": record.pid,
        "status": record.status,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
    }
    if record.annotations:
        described["annotations"] = dict(sorted(record.annotations.items()))
    described["owner"] = ""  # in runc's state, too; `list` has it
    if record.hypervisor:
        described["hypervisor"] = record.hypervisor
        described["accelerator"] = record.accelerator
    return described
