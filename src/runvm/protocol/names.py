"""Names that host and guest have in common: what the one calls something, the other has to look for."""

from __future__ import annotations

AGENT_PORT = "runvm.agent"
"""The name of the virtio-serial port that leads from the guest's agent to the supervisor."""
SHARE_TAG = "runvm"
"""The virtiofs tag of the VM's one shared directory."""
SHARE = "/run/share"
"""Where the guest mounts the shared directory."""
CONTAINERS = "containers"
"""The directory in the share that holds one directory for each container."""
MODULES = "modules"
"""The directory in the share with the guest kernel's modules."""
NOTIFY_DIRECTORY = "/run/runvm/notify"
"""Where the guest has each container's $NOTIFY_SOCKET, by the container's name."""
TEMPLATE_WORD = "runvm.template"
"""On the kernel's command line it tells a guest that a template is going to be made of it."""
