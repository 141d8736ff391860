"""Debian packages of the guest image: what apt says of them, what needs what, unpacked aside. The host gets nothing
installed."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Mapping, Sequence

from runvm.errors import HostError
from runvm.guest.commands import CommandError
from runvm.records import NamedTuple


class Package(NamedTuple):
    """A package as the archive has it. *needs* are names that it depends on, alternatives left out."""

    name: str
    version: str
    sha256: str
    size: int
    needs: tuple[str, ...]


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
    plain = {**os.environ, "LC_ALL": "C"}
    with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", deb), stdout=subprocess.PIPE, env=plain) as source:
        tar = ("tar", "--extract", "--directory", root, "--keep-directory-symlink", "--no-same-owner")
        done = subprocess.run(tar, stdin=source.stdout, capture_output=True, check=False, env=plain)
    if not source.returncode and not done.returncode:
        return
    words = done.stderr.decode(errors="replace").strip()
    if os.strerror(errno.ENOSPC) in words:
        raise HostError(f"can't unpack {deb}: no space left on device", do=f"make room on the file system of {root}")
    last = "\n".join(words.splitlines()[-3:])
    raise CommandError(f"can't unpack {deb}", do="remove it and run 'runvm image build' again", details=last)
