"""What `create`, `run` and `exec` are asked for, as the verbs take it. Paths are absolute; '' stands for none."""

from __future__ import annotations

from runvm.records import NamedTuple


class CreateOptions(NamedTuple):
    """`runvm create` and `run`. *config_file* '': the bundle's config.json; *preserve_fds* counts those above stdio."""

    bundle: str
    config_file: str = ""
    console_socket: str = ""
    pid_file: str = ""
    preserve_fds: int = 0
    pidfd_socket: str = ""


class ExecOptions(NamedTuple):
    """`runvm exec`. *process* is a complete OCI process object; *cgroup* is relative to the container's ('': in it).

    With *ignore_paused* a paused container gets the process once it is resumed.
    """

    process: dict[str, object]
    console_socket: str = ""
    pid_file: str = ""
    detach: bool = False
    preserve_fds: int = 0
    cgroup: str = ""
    pidfd_socket: str = ""
    ignore_paused: bool = False
