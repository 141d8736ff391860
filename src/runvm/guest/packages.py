"""Debian packages for the guest image: which ones, downloaded once, unpacked aside; the host gets nothing installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from runvm.errors import HostError


class Package(NamedTuple):
    """A package as the host's apt would fetch it now. *needs* are names that it depends on, alternatives left out."""

    name: str
    version: str
    sha256: str
    size: int
    needs: tuple[str, ...]


class CommandError(HostError):
    """A program of the build failed; *details* has its words."""


def run(argv: Sequence[str], *, cwd: str | None = None) -> str:
    """The standard output of *argv*. Raises HostError when it isn't there, CommandError when it fails."""
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    # apt's way out may be a proxy that only the environment knows
    environment.update({key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")})
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise HostError(
            f"{argv[0]} isn't installed: the guest image is built from Debian packages",
            do="name your own kernel, initramfs and modules in /etc/runvm/config.toml",
        ) from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise CommandError(f"{' '.join(argv[:2])} ended with {done.returncode}", details=words)
    return done.stdout.decode()


class Apt:
    """The host's apt, its own state left alone but for its package lists.

    An empty status file makes answers independent of what is installed: the same lists give the same packages.
    """

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch
        status = os.path.join(scratch, "status")
        with open(status, "wb"):
            pass
        archives = os.path.join(scratch, "archives")
        os.makedirs(os.path.join(archives, "partial"))
        # The sandbox user can't write to a directory of root's. Debian's container images turn apt's binary cache off,
        # and a call costs a second more without. What is in apt's archives isn't listed for download.
        settings = {
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "1",
            "Dir::State::status": status,
            "Dir::Cache::archives": archives,
            "Dir::Cache::pkgcache": os.path.join(scratch, "pkgcache.bin"),
            "Dir::Cache::srcpkgcache": os.path.join(scratch, "srcpkgcache.bin"),
        }
        self.options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def refresh(self) -> None:
        """Fetch the package lists anew. Raises HostError."""
        try:
            run(("apt-get", "update", "-q", "-o", "APT::Sandbox::User=root"))
        except CommandError as error:
            do = "run 'apt-get update'"
            raise HostError("apt can't fetch its package lists", do=do, details=error.details) from error

    def closure(self, names: Sequence[str]) -> dict[str, Package]:
        """*names* and all that they depend on, by name, as if nothing were installed.

        Raises CommandError when apt's lists lack a package, or aren't there.
        """
        install = ("apt-get", "install", "--print-uris", "-qq", "-y", "--no-install-recommends", *self.options)
        wanted = []
        for line in run((*install, *names)).splitlines():
            if line.startswith("'"):  # 'uri' name_version_arch.deb size hash
                name, version, _ = line.split("' ", 1)[1].split(" ", 1)[0].split("_", 2)
                wanted.append((name, urllib.parse.unquote(version)))
        listed = {name for name, _ in wanted}
        unlisted = [name for name in names if name not in listed]
        if unlisted:
            raise CommandError(f"apt-get names no download for {', '.join(unlisted)}")
        shown = run(("apt-cache", *self.options, "show", *(f"{name}={version}" for name, version in wanted)))
        return read_stanzas(shown, wanted)

    def fetch(self, packages: Sequence[Package], cache: str) -> dict[str, str]:
        """Package name → .deb in *cache*, where it stays for the next build under its hash; downloads what isn't there.

        Raises CommandError when a download fails (the mirror has dropped that version, say).
        """
        os.makedirs(cache, exist_ok=True)
        paths = {package.name: os.path.join(cache, f"{package.sha256}.deb") for package in packages}
        missing = [package for package in packages if not os.path.exists(paths[package.name])]
        if missing:
            download = os.path.join(self.scratch, "download")
            os.makedirs(download, exist_ok=True)
            names = [f"{package.name}={package.version}" for package in missing]
            run(("apt-get", "download", "-q", *self.options, *names), cwd=download)
            by_hash = {_sha256(entry.path): entry.path for entry in os.scandir(download)}
            for package in missing:
                if package.sha256 not in by_hash:
                    raise CommandError(f"apt-get downloaded another {package.name} than its lists promise")
                os.rename(by_hash[package.sha256], paths[package.name])
        return paths


def read_stanzas(text: str, wanted: Sequence[tuple[str, str]]) -> dict[str, Package]:
    """Packages from apt-cache's answer about *wanted* names and versions. Raises CommandError if one isn't in it."""
    stanzas: dict[str, dict[str, str]] = {}
    providers: dict[str, str] = {}
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        if "SHA256" in fields and (fields["Package"], fields["Version"]) in wanted:
            stanzas[fields["Package"]] = fields
            for words in fields.get("Provides", "").split(","):
                if words:
                    providers[_bare(words)] = fields["Package"]
    missing = [name for name, _ in wanted if name not in stanzas]
    if missing:
        raise CommandError(f"apt-cache knows no hash of {', '.join(missing)}")
    providers.update((name, name) for name in stanzas)
    found = {}
    for name in sorted(stanzas):
        fields = stanzas[name]
        needs = []
        for clause in f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}".split(","):
            # Of alternatives, apt has put the one that it chose among the wanted
            chosen = [providers[_bare(words)] for words in clause.split("|") if _bare(words) in providers]
            needs += chosen[:1]
        found[name] = Package(name, fields["Version"], fields["SHA256"], int(fields["Size"]), tuple(sorted(set(needs))))
    return found


def needed_by(names: Sequence[str], packages: Mapping[str, Package]) -> list[Package]:
    """Those of *packages* that *names* lead to, sorted by name."""
    todo = list(names)
    seen = set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += packages[name].needs
    return [packages[name] for name in sorted(seen)]


def _bare(words: str) -> str:
    """`python3:any (>= 3.11)` → `python3`."""
    return words.strip().split(" ")[0].split(":")[0]


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
