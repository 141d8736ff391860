"""Names that host and guest have in common: what the one calls something, the other has to look for."""

from __future__ import annotations

AGENT_PORT = "runvm.agent"
"""The name of the virtio-serial port that leads from the guest's agent to the supervisor."""
AGENT_LINE = "runvm.agent="
"""On the kernel's command line it names the serial line to the supervisor, where there is no virtio-serial port."""
SHARE_TAG = "runvm"
"""The virtiofs tag of the VM's one shared directory."""
SHARE = "/run/share"
"""Where the guest mounts the shared directory."""
CONTAINERS = "containers"
"""The directory in the share that holds one directory for each container."""
SUBMOUNTS = "submounts"
"""The file in a container's directory of the share that lists the mounts below its sources, in JSON: their paths in the
share, and which of MOUNT_FLAGS each has."""
MOUNT_FLAGS = frozenset(("ro", "nosuid", "nodev", "noexec"))
SHM = "shm"
"""The type of a mount that the containers with the same source share: a tmpfs of the guest's, which the agent makes, in
place of the one that an engine has made on the host for their /dev/shm."""
MODULES = "modules"
"""The directory in the share with the guest kernel's modules."""
TEMPLATE_WORD = "runvm.template"
"""On the kernel's command line it tells a guest that a template is going to be made of it."""
PLAIN_NEWLINES = "io.runvm.plainNewlines"
"""In an OCI process object with a terminal: what it prints ends its lines with LF alone, not CR LF."""


def notify_socket(container: str) -> str:
    """Where the guest has the $NOTIFY_SOCKET of *container*: its id, which may be long, is a directory's name."""
    return f"/run/runvm/notify/{container}/socket"


def host_socket(container: str, number: int) -> str:
    """Where the guest has the socket that stands for the host's with that *number* in *container*."""
    return f"/run/sockets/{container}/{number}"


HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled"
"""In the guest: whether it uses huge pages of that size. A guest does by itself."""
