"""The driver that the configuration names: built in, or of an installed package."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from runvm.errors import ConfigError
from runvm.linux import architecture

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from runvm.config import Config
    from runvm.hypervisor.choice import Choice
    from runvm.hypervisor.driver import Driver

GROUP = "runvm.hypervisors"
"""The group of entry points by which a package adds drivers: name = module:class."""
AUTO = "auto"
"""As `hypervisor`: the fastest of those that are built in and work here."""
BUILT_IN = {"qemu": ("runvm.hypervisor.qemu.driver", "Qemu"), "uml": ("runvm.hypervisor.uml.driver", "Uml")}


def load(config: Config) -> Driver:
    """The driver called `hypervisor` in *config*. Raises ConfigError for one that isn't there or can't be imported, or
    has no guests of the architecture that *config* names."""
    driver = _load(config)
    if architecture.is_foreign(config.arch) and config.arch not in driver.capabilities.architectures:
        raise ConfigError(
            f"hypervisor '{driver.name}' runs containers for {architecture.host()} alone, not for {config.arch}",
            do='set hypervisor = "qemu"',
        )
    return driver


def _load(config: Config) -> Driver:
    name = config.hypervisor
    if name == AUTO:
        # of another architecture only QEMU has guests
        name = "qemu" if architecture.is_foreign(config.arch) else choice(config).name
    if name in BUILT_IN:
        return built_in(name, config)
    driver: Driver
    found = _entry_point(name)
    if found is None:
        raise ConfigError(
            f"hypervisor '{name}' isn't installed",
            do=f"built in: {', '.join(BUILT_IN)}; 'pip install' a package that adds it",
        )
    try:
        driver = found.load()(config)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"hypervisor '{name}' can't be loaded from {found.value}: {error}") from error
    return driver


def built_in(name: str, config: Config) -> Driver:
    """One of BUILT_IN."""
    module, kind = BUILT_IN[name]
    driver: Driver = getattr(__import__(module, fromlist=[kind]), kind)(config)
    return driver


def choice(config: Config) -> Choice:
    """What 'auto' means here, found out now if need be. Raises DeadlineError, OSError."""
    from runvm.hypervisor import choice

    return choice.choose(config, lambda name: built_in(name, config))


def likely(config: Config) -> Driver:
    """As load(), for what only tells of the host: no guest is booted to find out what 'auto' means; where that would
    be needed it is QEMU. Raises ConfigError, OSError."""
    return load(config if config.hypervisor != AUTO else config._replace(hypervisor=known_name(config) or "qemu"))


def with_checkpoints(config: Config) -> str:
    """The hypervisor that a checkpoint is restored with: of 'auto' the one that can."""
    if config.hypervisor != AUTO:
        return config.hypervisor
    return next(name for name in BUILT_IN if built_in(name, config).capabilities.checkpoint)


def with_narrow_programs(config: Config) -> str:
    """The hypervisor that runs programs of 32 bits where that of 'auto' doesn't."""
    return next(name for name in BUILT_IN if built_in(name, config).capabilities.narrow_programs)


def known_name(config: Config) -> str:
    """The hypervisor that a container would get by those settings; '' where a guest would have to be booted to find
    out. Raises OSError."""
    if config.hypervisor != AUTO:
        return config.hypervisor
    if architecture.is_foreign(config.arch):
        return "qemu"
    from runvm.hypervisor import choice

    found = choice.known(config)
    return "" if found is None else found.name


def _entry_point(name: str) -> EntryPoint | None:
    """The entry point of that name in the packages of this Python, also where it runs without them: the installed
    command leaves the site's directories out (-S -I), since looking through them takes time at each call."""
    import site
    from importlib.metadata import distributions

    sys.path += [path for path in site.getsitepackages() if path not in sys.path]
    for distribution in distributions():
        for entry in distribution.entry_points:
            if entry.group == GROUP and entry.name == name:
                return entry
    return None
