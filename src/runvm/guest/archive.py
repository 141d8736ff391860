"""Where the guest's packages come from: Debian's archive at the host's own mirror, another suite than the host's.

runvm names no server. The host's apt says which one it uses; the configuration's keys guest_mirror and
guest_security_mirror say it where that is no mirror of Debian. Whatever the server, what comes from it is what Debian
signed: apt checks the archive's signature by the keyring.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from runvm.errors import HostError
from runvm.guest import pins
from runvm.guest.commands import CommandError, run
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.config import Config

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_OS_RELEASE = "/etc/os-release"
# Names of Debian's suites that a host's sources may have: its release's own, from os-release, comes first
_SUITES = ("stable", "testing", "unstable", "sid", "oldstable", "bookworm", "trixie", "forky")
_ROLLING = ("sid", "unstable")
"""Suites with neither updates nor security updates of their own: all goes in there at once."""
_INDEX = re.compile(r"'(?P<base>[^']+)/dists/(?P<suite>[^']+)/(?:In)?Release(?:\.gpg)?' ")
_SETTING = re.compile(r'(?P<name>Acquire::[^ ";]+) "[^"]*";')
_OWN = ("Acquire::IndexTargets", "Acquire::Languages", "Acquire::GzipIndexes")
"""The host's settings about which files to fetch and how to keep them: runvm has its own."""


class Archive(NamedTuple):
    """A suite at a mirror, verified by *keyring*; *security* is the mirror of its security updates, '' without one.

    *kernel* and *crun* are the series that are taken of it, '' for any.
    """

    suite: str
    mirror: str
    security: str
    keyring: str
    kernel: str
    crun: str

    def sources(self, architecture: str) -> str:
        """sources.list(5) for it."""
        options = f"[arch={architecture} target=Packages signed-by={self.keyring}]"
        suites = [(self.mirror, self.suite)]
        if self.suite not in _ROLLING:
            suites.append((self.mirror, f"{self.suite}-updates"))
            if self.security:
                suites.append((self.security, f"{self.suite}-security"))
        return "".join(f"deb {options} {mirror} {suite} main\n" for mirror, suite in suites)


def chosen(config: Config) -> Archive:
    """The archive of *config*, else of the host's sources. Raises: HostError where neither names a mirror of Debian,
    or the keyring isn't there."""
    keyring = config.guest_keyring or KEYRING
    if not os.path.exists(keyring):
        raise HostError(
            f"{keyring} isn't there, by which apt verifies the guest's packages",
            do="install debian-archive-keyring" if keyring == KEYRING else "see guest_keyring in the configuration",
        )
    suite = config.guest_suite or pins.SUITE
    mirror, security = config.guest_mirror, config.guest_security_mirror
    if not mirror:
        found_mirror, found_security = host_mirrors(_host_sources(), _codename())
        mirror, security = found_mirror, security or found_security
    if not mirror:
        raise HostError(
            "the host's apt has no mirror of Debian, of whose packages the guest is made",
            do="name one in /etc/runvm/config.toml: guest_mirror, guest_security_mirror",
        )
    pinned = suite == pins.SUITE
    kernel = config.guest_kernel or (pins.KERNEL if pinned else "")
    crun = config.guest_crun or (pins.CRUN if pinned else "")
    return Archive(suite, mirror, security, keyring, kernel, crun)


def host_mirrors(listed: str, codename: str) -> tuple[str, str]:
    """The mirrors of Debian and of its security updates in *listed*, the answer of `apt-get update --print-uris`; each
    '' where there is none.

    Other archives for Debian have suites of the same names; only Debian's own has one of the updates beside them.
    """
    suites: dict[str, list[str]] = {}
    for line in listed.splitlines():
        match = _INDEX.match(line)
        if match and not match["base"].startswith("cdrom:"):
            suites.setdefault(match["base"], []).append(match["suite"])
    names = [name for name in (codename, *_SUITES) if name]
    mirrors = [base for base, has in suites.items() if any(name in has for name in names)]
    with_updates = [base for base in mirrors if any(f"{name}-updates" in suites[base] for name in names)]
    named = [base for base in mirrors if base.rstrip("/").endswith("/debian")]
    security = [base for base, has in suites.items() if any(_is_security(suite, names) for suite in has)]
    return (*(with_updates or named or mirrors), "")[0], (*security, "")[0]


def inherited_settings(dump: str) -> str:
    """Of *dump*, the answer of `apt-config dump`, how the host's apt reaches servers: proxies, timeouts, certificates.

    All else of the host's configuration stays out: its hooks, its pins, and which further lists it fetches.
    """
    kept = []
    for line in dump.splitlines():
        match = _SETTING.fullmatch(line)
        if match and not match["name"].startswith(_OWN):
            kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def _is_security(suite: str, names: list[str]) -> bool:
    return any(suite in (f"{name}-security", f"{name}/updates") for name in names)


def _host_sources() -> str:
    """What the host's apt would fetch; '' where its sources can't be read."""
    try:
        return run(("apt-get", "update", "--print-uris", "-o", "Debug::NoLocking=1"))
    except CommandError:
        return ""


def _codename() -> str:
    try:
        with open(_OS_RELEASE) as file:
            fields = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    except OSError:
        return ""
    return fields.get("VERSION_CODENAME", "").strip("\"'") if fields.get("ID", "").strip("\"'") == "debian" else ""
