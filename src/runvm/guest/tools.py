"""Packages that a build runs on this host where the guest is of another architecture: Python and depmod, for the host's
architecture, of the suite that the guest is made of. Bytecode and modules' indexes are the same on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runvm.guest import packages
from runvm.guest.apt import Apt
from runvm.guest.commands import CommandError
from runvm.guest.packages import Package
from runvm.records import NamedTuple

NAMES = ("python3-minimal", "libpython3-stdlib", "kmod")


class Tools(NamedTuple):
    """The packages, and their files by hash; none where the guest's own packages run here."""

    packages: tuple[Package, ...] = ()
    debs: Mapping[str, str] = {}


def gather(apt: Apt, kept: tuple[Package, ...], progress: Callable[[str], None]) -> Tools:
    """Those of *kept*, an image's before, where they can still be had, else the archive's newest. Raises HostError."""
    if kept:
        try:
            return _fetched(apt, kept)
        except CommandError:
            progress("the mirror no longer has the packages that this image was built with: taking newer ones")
    if not apt.fetched():
        progress(f"fetching the lists of packages for {apt.architecture}, with which the image is built")
        apt.refresh()
    try:
        return _fetched(apt, _newest(apt))
    except CommandError:
        apt.refresh()
        return _fetched(apt, _newest(apt))


def _newest(apt: Apt) -> tuple[Package, ...]:
    found = packages.needed_by(NAMES, apt.closure(NAMES))
    return tuple(package._replace(needs=()) for package in found)


def _fetched(apt: Apt, wanted: tuple[Package, ...]) -> Tools:
    debs = apt.fetch(wanted)
    return Tools(wanted, {package.sha256: debs[package.name] for package in wanted})
