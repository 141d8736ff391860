"""Processor architectures by Debian's names: which this host has, and of which a guest can be."""

from __future__ import annotations

import os

from runvm.records import NamedTuple

AUTO = "auto"
"""As the setting `arch`: the one that the container's programs are for."""


class Architecture(NamedTuple):
    """An architecture that a guest can be of: what `uname -m` says there, the directory of its libraries below
    /usr/lib, and how the configuration of seccomp calls the system calls of its kernel (SCMP_ARCH_…)."""

    name: str
    machine: str
    libraries: str
    seccomp: tuple[str, ...]


KNOWN = {
    each.name: each
    for each in (
        Architecture("amd64", "x86_64", "x86_64-linux-gnu", ("X86_64", "X86", "X32")),
        Architecture("arm64", "aarch64", "aarch64-linux-gnu", ("AARCH64", "ARM")),
    )
}


def host() -> str:
    """This host's, or the machine's own name where it is none of KNOWN."""
    machine = os.uname().machine
    return next((each.name for each in KNOWN.values() if each.machine == machine), machine)


def chosen(setting: str) -> str:
    """What the setting `arch` means where no container says otherwise."""
    return host() if setting == AUTO else setting


def is_foreign(setting: str) -> bool:
    """Whether the setting `arch` names another than this host's."""
    return setting not in (AUTO, host())
