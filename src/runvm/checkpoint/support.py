"""Whether VMs can be checkpointed on this host: by the driver's word, and virtiofsd's version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import UnsupportedError
from runvm.hypervisor import drivers
from runvm.shares import virtiofs

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Driver


def lacks(config: Config) -> list[str]:
    """What it would take, with what was found; nothing where it can be done. Raises HostError, ConfigError."""
    driver = drivers.load(config)
    if not driver.capabilities.checkpoint:
        return [f"another hypervisor: '{driver.name}' can't save a virtual machine that runs"]
    return [lack for lack in (driver.checkpoint_lacks(), virtiofs.checkpoint_lacks(config)) if lack]


def check(config: Config, command: str) -> Driver:
    """The driver, which can. Raises UnsupportedError, HostError, ConfigError."""
    if missing := lacks(config):
        raise UnsupportedError(f"{command} is not supported here: it takes {'; and '.join(missing)}")
    return drivers.load(config)
