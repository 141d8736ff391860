"""Sysctls of the network for a container in a user namespace: crun, which has entered that, may not write them, since
the network namespace is the agent's."""

from __future__ import annotations

from functools import partial
from typing import Any

from runvm.agent.errors import AgentError
from runvm.linux import files
from runvm.linux.netns import in_namespace

_GROUPS = "net.ipv4.ping_group_range"
"""Its value is group ids, which the kernel takes as those of whoever writes."""


def write_networks(spec: dict[str, Any], netns: int) -> None:
    """Take those of the network out of *spec* and write them in *netns*, where the container has a user namespace.

    Raises: AgentError where one can't be written.
    """
    linux = spec["linux"]
    if not any(namespace["type"] == "user" for namespace in linux["namespaces"]):
        return
    wanted = {key: value for key, value in linux.get("sysctl", {}).items() if key.startswith("net.")}
    linux["sysctl"] = {key: value for key, value in linux.get("sysctl", {}).items() if key not in wanted}
    for key, value in wanted.items():
        if key == _GROUPS:
            value = " ".join(str(_in_guest(int(group), linux.get("gidMappings", []))) for group in value.split())
        try:
            in_namespace(netns, partial(files.write, f"/proc/sys/{key.replace('.', '/')}", value))
        except OSError as error:
            raise AgentError(f"write sysctl {key}: {error.strerror}") from None


def _in_guest(group: int, mappings: list[dict[str, int]]) -> int:
    """The group id in the guest of one of the container's; as it is where it isn't mapped, as in a joined namespace."""
    for mapping in mappings:
        if 0 <= group - mapping["containerID"] < mapping["size"]:
            return group - mapping["containerID"] + mapping["hostID"]
    return group
