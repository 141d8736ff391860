"""apt for the guest image: with sources, lists and settings of its own, beside the host's, which nothing here changes.

It needs no root, and no architecture or release that the host has: the lists of each suite and architecture are in a
directory of their own, and an empty status file makes answers independent of what is installed. The same lists give
the same packages.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Sequence

from runvm.guest.archive import Archive, inherited_settings
from runvm.guest.commands import CommandError, run
from runvm.guest.packages import Package, read_stanzas

_STAMP = "fetched"
_TRIED = "tried"
# The sandbox user can't write to a directory of root's
_SETTINGS = """\
APT::Architecture "{architecture}";
APT::Architectures:: "{architecture}";
APT::Install-Recommends "false";
APT::Get::AllowUnauthenticated "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{directory}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::State "{directory}";
Dir::State::lists "{directory}/lists";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}/cache";
"""


class Apt:
    """The packages of *archive* for *architecture* (Debian's name of it); lists and .debs are kept below *cache*.

    Raises: HostError (apt isn't installed), OSError.
    """

    def __init__(self, cache: str, archive: Archive, architecture: str) -> None:
        self.architecture = architecture
        self._archive = archive
        self._cache = cache
        self._directory = os.path.join(cache, "apt", f"{archive.suite}-{architecture}")
        for name in ("lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(self._directory, name), exist_ok=True)
        settings = _SETTINGS.format(architecture=architecture, directory=self._directory)
        self._write("apt.conf", inherited_settings(run(("apt-config", "dump"))) + settings)
        self._write("sources.list", archive.sources(architecture))
        self._write("status", "")
        self._environment = {"APT_CONFIG": os.path.join(self._directory, "apt.conf")}

    def fetched(self) -> float:
        """When the lists were fetched, seconds of the epoch; 0 when they weren't, or from other sources."""
        try:
            with open(self._stamp()) as file:
                return os.fstat(file.fileno()).st_mtime if file.read() == self._sources() else 0.0
        except FileNotFoundError:
            return 0.0

    def tried(self) -> float:
        """When the last attempt to fetch them was, seconds of the epoch."""
        try:
            return os.stat(os.path.join(self._directory, _TRIED)).st_mtime
        except FileNotFoundError:
            return 0.0

    def refresh(self) -> None:
        """Fetch the package lists anew; those that are there stay where that fails. Raises CommandError."""
        self._write(_TRIED, "")
        try:
            self._run("apt-get", "update", "-q")
        except CommandError as error:
            raise CommandError(
                f"apt can't fetch the lists of {self._archive.suite}'s packages",
                do="see whether the mirror can be reached and has that suite; guest_mirror names another",
                details=error.details,
            ) from error
        self._write(_STAMP, self._sources())

    def closure(self, names: Sequence[str]) -> dict[str, Package]:
        """*names* and all that they depend on, by name, as if nothing were installed.

        Raises CommandError when apt's lists lack a package, or aren't there.
        """
        wanted = []
        for line in self._run("apt-get", "install", "--print-uris", "-qq", "-y", *names).splitlines():
            if line.startswith("'"):  # 'uri' name_version_arch.deb size hash
                name, version, _ = line.split("' ", 1)[1].split(" ", 1)[0].split("_", 2)
                wanted.append((name, urllib.parse.unquote(version)))
        listed = {name for name, _ in wanted}
        unlisted = [name for name in names if name not in listed]
        if unlisted:
            raise CommandError(f"apt-get names no download for {', '.join(unlisted)}")
        shown = self._run("apt-cache", "show", *(f"{name}={version}" for name, version in wanted))
        return read_stanzas(shown, wanted)

    def fetch(self, packages: Sequence[Package]) -> dict[str, str]:
        """Package name → its .deb, which stays for the next build under its hash; downloads what isn't there.

        Raises CommandError when a download fails (the mirror has dropped that version, say).
        """
        paths = {package.name: deb(self._cache, package) for package in packages}
        missing = [package for package in packages if not os.path.exists(paths[package.name])]
        if missing:
            download = os.path.join(self._directory, "download")
            os.makedirs(download, exist_ok=True)
            names = [f"{package.name}={package.version}" for package in missing]
            self._run("apt-get", "download", "-q", *names, cwd=download)
            by_hash = {_sha256(entry.path): entry.path for entry in os.scandir(download)}
            for package in missing:
                if package.sha256 not in by_hash:
                    raise CommandError(f"apt-get downloaded another {package.name} than its lists promise")
                os.rename(by_hash[package.sha256], paths[package.name])
        return paths

    def _run(self, *argv: str, cwd: str | None = None) -> str:
        return run(argv, cwd=cwd, environment=self._environment)

    def _sources(self) -> str:
        return self._archive.sources(self.architecture)

    def _stamp(self) -> str:
        return os.path.join(self._directory, _STAMP)

    def _write(self, name: str, text: str) -> None:
        with open(os.path.join(self._directory, name), "w") as file:
            file.write(text)


def native_architecture() -> str:
    """Debian's name of the host's architecture. Raises HostError."""
    return run(("dpkg", "--print-architecture")).strip()


def deb(cache: str, package: Package) -> str:
    """Where *package*'s file is kept in *cache*."""
    return os.path.join(cache, f"{package.sha256}.deb")


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
