"""Messages about checkpoints and what is restored from them; a part of protocol.messages."""

from __future__ import annotations

from runvm.protocol.fields import Json
from runvm.records import NamedTuple

# --- host → guest


class Quiesce(NamedTuple):
    """Before a checkpoint, to the guest: freeze the container and then do nothing but wait for Unquiesce or Restored;
    what was to be said has been said before the answer. To a shim: read no more input. Result: {}."""

    container: str


class Unquiesce(NamedTuple):
    """The checkpoint is taken and all goes on. Result: {}."""


class Restored(NamedTuple):
    """The VM comes from a checkpoint that was taken after Quiesce, of *before*; its container is called *container*
    now. Clock and entropy as for Initialize; *hostname* ('' = as it was); *network* and *interfaces* as for Create.
    With *lift_limits* it has no limits until Update says which. Result: {}."""

    before: str
    container: str
    clock_ns: int
    entropy: str
    hostname: str
    network: int
    interfaces: Json
    lift_limits: bool


# --- commands → supervisor


class FindMemory(NamedTuple):
    """From checkpoint, which copies the VM's memory while it runs: where it is. Fails where Checkpoint would: with
    *spare_execs* also while processes of exec run. Result: sandbox.checkpointing.MemoryFiles."""

    container: str
    spare_execs: bool


class Checkpoint(NamedTuple):
    """From checkpoint: stop the VM of this container, its only one, and write its device state. While the VM stands
    still the command copies what has changed in its memory, and sends EndCheckpoint; if this connection closes before,
    the VM goes on. With *spare_execs* it waits until no process runs that exec has started, else they are ended.
    Result: sandbox.checkpointing.Stopped."""

    container: str
    spare_execs: bool


class EndCheckpoint(NamedTuple):
    """After Checkpoint, on its connection: with *keep* the VM goes on, else it ends as if killed. Result: {}."""

    keep: bool


class RestoreContainer(NamedTuple):
    """From restore, to the supervisor of a VM that comes from a checkpoint: its container, attached to a new shim.
    The fields are those of CreateContainer; *resources* are its limits, with *same_limits* those that it had. With
    *at_start* that is done by its Start, and until then it is as one that has been created. Result: {}."""

    container: str
    resources: Json
    same_limits: bool
    network: bool
    cgroups: list[str]
    limit_mib: int
    hostname: str
    at_start: bool
