"""Debian packages for the guest image: which ones, downloaded once, unpacked aside. Nothing is installed on the host."""

from __future__ import annotations

import hashlib
import os
import subprocess
import urllib.parse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from runvm.errors import HostError


class Package(NamedTuple):
    """A package as the host's apt would fetch it now."""

    name: str
    version: str
    sha256: str


class CommandError(HostError):
    """A program of the build failed; *details* has its words."""


def run(argv: Sequence[str], *, cwd: str | None = None) -> str:
    """The standard output of *argv*. Raises HostError when it isn't there, CommandError when it fails."""
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    # apt's way out may be a proxy that only the environment knows
    environment.update({key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")})
    try:
        done = subprocess.run(argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise HostError(
            f"{argv[0]} isn't installed: the guest image is built from Debian packages",
            do="name your own kernel, initramfs and modules in /etc/runvm/config.toml",
        ) from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise CommandError(f"{' '.join(argv[:2])} ended with {done.returncode}", details=words)
    return done.stdout.decode()


def refresh(progress: Callable[[str], None]) -> None:
    """Fetch apt's package lists anew."""
    progress("apt-get update")
    try:
        run(("apt-get", "update", "-q", "-o", "APT::Sandbox::User=root"))
    except CommandError as error:
        raise HostError("apt can't fetch its package lists", do="run 'apt-get update'", details=error.details) from error


def closure(names: Sequence[str], scratch: str) -> list[Package]:
    """*names* and all that they depend on, as if nothing were installed, sorted by name.

    An empty status file makes the answer the same on every host with the same package lists.
    Raises CommandError when the lists lack a package or aren't there.
    """
    status = os.path.join(scratch, "status")
    with open(status, "wb"):
        pass
    options = ("-o", f"Dir::State::status={status}", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1")
    listed = run(("apt-get", "install", "--print-uris", "-qq", "-y", "--no-install-recommends", *options, *names))
    wanted = []
    for line in listed.splitlines():
        if line.startswith("'"):  # 'uri' name_version_arch.deb size hash
            name, version, _ = line.split("' ", 1)[1].split(" ", 1)[0].split("_", 2)
            wanted.append((name, urllib.parse.unquote(version)))
    if not wanted:
        raise CommandError("apt-get named no packages to download", details=listed)
    return _with_hashes(wanted)


def _with_hashes(wanted: list[tuple[str, str]]) -> list[Package]:
    shown = run(("apt-cache", "show", *(f"{name}={version}" for name, version in wanted)))
    hashes: dict[tuple[str, str], str] = {}
    for stanza in shown.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" "))
        if "SHA256" in fields:
            hashes[fields["Package"], fields["Version"]] = fields["SHA256"]
    missing = [name for name, version in wanted if (name, version) not in hashes]
    if missing:
        raise CommandError(f"apt-cache knows no hash of {', '.join(missing)}")
    return sorted(Package(name, version, hashes[name, version]) for name, version in wanted)


def fetch(packages: Sequence[Package], cache: str, scratch: str) -> dict[str, str]:
    """Package name → .deb in *cache*, where it stays for the next build under its hash; downloads what isn't there.

    Raises CommandError when a download fails (the mirror has dropped that version, say).
    """
    os.makedirs(cache, exist_ok=True)
    paths = {package.name: os.path.join(cache, f"{package.sha256}.deb") for package in packages}
    missing = [package for package in packages if not os.path.exists(paths[package.name])]
    if missing:
        download = os.path.join(scratch, "download")
        os.makedirs(download, exist_ok=True)
        names = [f"{package.name}={package.version}" for package in missing]
        run(("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *names), cwd=download)
        by_hash = {_sha256(entry.path): entry.path for entry in os.scandir(download)}
        for package in missing:
            if package.sha256 not in by_hash:
                raise CommandError(f"apt-get downloaded another {package.name} than its lists promise")
            os.rename(by_hash[package.sha256], paths[package.name])
    return paths


def unpack(deb: str, root: str) -> None:
    """Unpack the files of *deb* into *root*, following *root*'s own symlinks to directories.

    dpkg-deb -x would replace them, and a merged /usr is what the packages are made for.
    """
    with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", deb), stdout=subprocess.PIPE) as source:
        tar = ("tar", "--extract", "--directory", root, "--keep-directory-symlink", "--no-same-owner")
        done = subprocess.run(tar, stdin=source.stdout, capture_output=True, check=False)
    if source.returncode or done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise CommandError(f"can't unpack {deb}", do="remove it and run 'runvm image build' again", details=words)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
