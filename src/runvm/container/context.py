"""What every verb is given by the command line: where containers' state is, the settings, how cgroups are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.config import Config


class Context(NamedTuple):
    """One command's surroundings. *cgroup_manager* is cgroupfs, systemd or disabled; *rootless* true, false or auto."""

    root: str
    config: Config
    cgroup_manager: str
    rootless: str
