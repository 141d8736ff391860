"""Which packages an image is built of: those of the image that is current, or the archive's newest.

A build after an upgrade of runvm takes the packages that the guest has had, so that nothing else changes, and needs no
network; it says when the archive has newer ones. `image build --update` takes these.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence

from runvm.config import Config
from runvm.errors import HostError
from runvm.guest import archive, packages, pythonpath, tools
from runvm.guest.apt import Apt, native_architecture
from runvm.guest.archive import Archive
from runvm.guest.commands import CommandError
from runvm.guest.packages import Package
from runvm.guest.tools import Tools
from runvm.linux import architecture
from runvm.records import NamedTuple

USERLAND = ("crun", "python3-minimal", "libpython3-stdlib", "kmod", "busybox-static")
KERNEL_PREFIXES = ("linux-image-", "linux-modules-")  # some distributions have the modules apart
_FRESH = 86400.0
"""Seconds that package lists are taken for new."""
_PATIENCE = 3600.0
"""Seconds after which a mirror that couldn't be reached is asked again."""
_SHOWN = 3

Manifest = Mapping[str, object]


class Report(NamedTuple):
    """How a build tells what it does: *progress* for whoever watches, *notice* for what the user should know."""

    progress: Callable[[str], None]
    notice: Callable[[str], None]


class Chosen(NamedTuple):
    """Packages of the userland and of the kernel; *taken* is when the archive had them as its newest."""

    userland: tuple[Package, ...]
    kernel: tuple[Package, ...]
    taken: int

    @property
    def packages(self) -> tuple[Package, ...]:
        """All of them."""
        return self.userland + self.kernel


class Plan(NamedTuple):
    """All that the image depends on; *inputs* is the hash of it. *tools* are needed where the guest's own programs
    don't run on this host."""

    suite: str
    architecture: str
    chosen: Chosen
    tools: Tools
    agent: pythonpath.AgentSources
    inputs: str

    @property
    def kernel_inputs(self) -> list[str]:
        """Hashes of what the kernel's and its modules' files come from."""
        sources = self.tools.packages or self.chosen.userland
        kmod = [package for package in sources if package.name == "kmod"]
        return [package.sha256 for package in (*kmod, *self.chosen.kernel)]


def gather(
    config: Config, cache: str, current: Manifest, report: Report, *, update: bool
) -> tuple[Plan, dict[str, str]]:
    """The plan for the architecture that *config* names, and its packages' files in *cache*; *current* is the manifest
    of that architecture's current image, or empty.

    Raises: HostError where the archive can't be reached and is needed, or has not what is pinned.
    """
    source = archive.chosen(config)
    native = native_architecture()
    apt = Apt(cache, source, config.arch if architecture.is_foreign(config.arch) else native)
    kept = None if update else _kept(current, source, apt.architecture)
    try:
        newest = _newest(apt, source, report, fresh=update)
    except HostError as error:
        if kept is None:
            raise
        report.progress(f"not looked for newer packages: {error.message}")
        newest = kept
    chosen = kept or newest
    newer = _newer(chosen, newest)
    if newer:
        report.notice(f"newer packages for the guest are there ({newer}): 'runvm image build --update' takes them")
    try:
        debs = _fetch(apt, cache, chosen, report)
    except CommandError:
        # the mirror no longer has them
        report.progress("fetching the lists of packages")
        apt.refresh()
        chosen = _ask(apt, source)
        debs = _fetch(apt, cache, chosen, report)
    helpers = Tools()
    if apt.architecture != native:
        had = () if update else _kept_tools(current)
        helpers = tools.gather(Apt(cache, source, native), had, report.progress)
    return _plan(source.suite, apt.architecture, chosen, helpers), debs


def described(package: Package, *, kernel: bool) -> dict[str, object]:
    """*package* as an image's manifest has it."""
    return {
        "name": package.name,
        "version": package.version,
        "sha256": package.sha256,
        "size": package.size,
        "kernel": kernel,
    }


def _kept(manifest: Manifest, source: Archive, architecture: str) -> Chosen | None:
    """The packages of *manifest*'s image, if they are of that suite and architecture and as pinned."""
    listed, taken = manifest.get("packages"), manifest.get("taken")
    if (manifest.get("suite"), manifest.get("architecture")) != (source.suite, architecture):
        return None
    if not isinstance(listed, list) or not isinstance(taken, int):
        return None
    try:
        every = [(bool(each["kernel"]), _package(each)) for each in listed]
        chosen = Chosen(
            tuple(package for kernel, package in every if not kernel),
            tuple(package for kernel, package in every if kernel),
            taken,
        )
        _check_pins(chosen, source)
    except (KeyError, TypeError, ValueError, HostError):
        return None
    return chosen


def _kept_tools(manifest: Manifest) -> tuple[Package, ...]:
    listed = manifest.get("tools")
    try:
        return tuple(_package(each) for each in listed) if isinstance(listed, list) else ()
    except (KeyError, TypeError, ValueError):
        return ()


def _package(fields: Mapping[str, str | int]) -> Package:
    return Package(str(fields["name"]), str(fields["version"]), str(fields["sha256"]), int(fields["size"]), ())


def _newest(apt: Apt, source: Archive, report: Report, *, fresh: bool) -> Chosen:
    """What the archive has now; its lists are fetched if *fresh*, if there are none, or if they are old."""
    now = time.time()
    if fresh or not apt.fetched():
        report.progress(f"fetching the lists of {source.suite}'s packages")
        apt.refresh()
    elif now - apt.fetched() > _FRESH and now - apt.tried() > _PATIENCE:
        try:
            apt.refresh()
        except CommandError as error:
            report.progress(f"the lists of packages stay those of {_day(apt.fetched())}: {error.message}")
    report.progress("asking apt for the packages")
    try:
        return _ask(apt, source)
    except CommandError:
        if fresh:
            raise
    apt.refresh()
    return _ask(apt, source)


def _ask(apt: Apt, source: Archive) -> Chosen:
    meta = f"linux-image-{apt.architecture}"
    available = apt.closure((meta, *USERLAND))
    with_kernel = packages.needed_by((meta,), available)
    kernel = [package for package in with_kernel if package.name.startswith(KERNEL_PREFIXES) and package.name != meta]
    userland = packages.needed_by(USERLAND, available)
    # without *needs*, which a manifest doesn't keep, so that those of a manifest are the same
    chosen = Chosen(
        tuple(package._replace(needs=()) for package in userland),
        tuple(package._replace(needs=()) for package in kernel),
        int(apt.fetched()),
    )
    _check_pins(chosen, source)
    return chosen


def _check_pins(chosen: Chosen, source: Archive) -> None:
    """Raise HostError unless kernel and crun are of the series that is pinned."""
    crun = [package for package in chosen.userland if package.name == "crun"]
    for name, key, series, found in (
        ("the kernel", "guest_kernel", source.kernel, chosen.kernel),
        ("crun", "guest_crun", source.crun, crun),
    ):
        for package in found:
            if series and not is_of(package.version, series):
                raise HostError(
                    f"{name} of {source.suite} is {package.version}, and {series} is what the guest is to have",
                    do=f"set {key} in /etc/runvm/config.toml to try another",
                )


def is_of(version: str, series: str) -> bool:
    """Whether a package's *version*, its epoch left out, is *series* or begins with it: 6.12.5-1 is of 6.12, not of
    6.1."""
    upstream = version.rpartition(":")[2]
    return upstream.startswith(series) and not upstream[len(series) : len(series) + 1].isdigit()


def _newer(chosen: Chosen, newest: Chosen) -> str:
    """The packages that *newest* has in another version, a few of them by name; '' if there is none."""
    had = {(package.name, package.version) for package in chosen.packages}
    names = [
        f"{package.name} {package.version}"
        for package in (*newest.kernel, *newest.userland)
        if (package.name, package.version) not in had
    ]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _fetch(apt: Apt, cache: str, chosen: Chosen, report: Report) -> dict[str, str]:
    missing = [
        package for package in chosen.packages if not os.path.exists(os.path.join(cache, f"{package.sha256}.deb"))
    ]
    if missing:
        size = sum(package.size for package in missing) / 1e6
        report.progress(f"downloading {len(missing)} packages ({size:.0f} MB)")
    return apt.fetch(chosen.packages)


def _plan(suite: str, architecture: str, chosen: Chosen, helpers: Tools) -> Plan:
    agent = pythonpath.agent()
    used = [package.sha256 for package in (*chosen.packages, *helpers.packages)]
    digest = hashlib.sha256(json.dumps(used).encode())
    folder = os.path.dirname(__file__)
    builder: Sequence[str] = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".py"))
    for path in builder:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").hexdigest().encode())
    digest.update(pythonpath.agent_hash(agent).encode())
    return Plan(suite, architecture, chosen, helpers, agent, digest.hexdigest())


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(when))
