"""Whether VMs can be checkpointed on this host: by the driver's word, and virtiofsd's version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import UnsupportedError
from runvm.hypervisor import drivers
from runvm.shares import virtiofs

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.hypervisor.driver import Driver


_OTHER = (
    'set hypervisor = "qemu", or allow containers to choose it by container_hypervisors, and make the container anew'
)


def lacks(config: Config) -> list[str]:
    """What it would take, with what was found; nothing where it can be done. No guest is booted for it. Raises
    HostError, ConfigError."""
    return _lacks(config, drivers.likely(config))


def check(config: Config, command: str, hypervisor: str) -> Driver:
    """The driver of *hypervisor* ('': the configured one), which can.

    Raises: UnsupportedError, HostError, ConfigError.
    """
    driver = drivers.load(config._replace(hypervisor=hypervisor) if hypervisor else config)
    if missing := _lacks(config, driver):
        do = "" if driver.capabilities.checkpoint else _OTHER
        raise UnsupportedError(f"{command} is not supported here: it takes {'; and '.join(missing)}", do=do)
    return driver


def _lacks(config: Config, driver: Driver) -> list[str]:
    if not driver.capabilities.checkpoint:
        return [f"another hypervisor: '{driver.name}' can't save a virtual machine that runs"]
    return [lack for lack in (driver.checkpoint_lacks(), virtiofs.checkpoint_lacks(config)) if lack]
