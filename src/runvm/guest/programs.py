"""Runs programs of an unpacked root with that root's own dynamic linker, without a chroot, and collects what they need.

So the image is built with the guest's depmod and Python, which the host may lack or have in another version. Programs
of another architecture can't run here: those of the same packages for the host's do in their place.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from runvm.errors import HostError
from runvm.guest import elf
from runvm.guest.commands import CommandError, run


class Root:
    """An unpacked tree of packages with a merged /usr."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._name = ""
        self._linker = ""
        self._library_path = ""

    def at(self, path: str) -> str:
        """The host's path of the root's *path*."""
        return os.path.join(self.path, path.lstrip("/"))

    def real(self, path: str) -> str:
        """The host's path of the file that the root's *path* leads to; absolute symlinks mean the root's own files."""
        for _ in range(40):
            host = self.at(path)
            if not os.path.islink(host):
                return host
            path = os.path.join(os.path.dirname(path), os.readlink(host))
        raise HostError(f"too many symlinks at {path} of the guest's packages")

    def make_merged_usr(self) -> None:
        """The directories and symlinks that packages expect before the first one is unpacked."""
        for name in ("bin", "sbin", "lib", "lib64"):
            os.makedirs(self.at(f"usr/{name}"), exist_ok=True)
            os.symlink(f"usr/{name}", self.at(name))

    def call(self, program: str, *args: str) -> str:
        """The output of *program* (a path in the root) with *args*. argv[0] counts: kmod is many programs by name."""
        try:
            return run((*self._loader(), "--argv0", self.at(program), self.real(program), *args))
        except CommandError as error:
            name = os.path.basename(program)
            raise CommandError(f"{name} of the guest's packages failed", details=error.details) from error

    def libraries(self, programs: Sequence[str]) -> list[str]:
        """Paths in the root of the shared libraries that *programs* (paths there) load, dynamic linker included."""
        self._loader()
        found = {self._name}
        todo = list(programs)
        while todo:
            program = todo.pop()
            with open(self.real(program), "rb") as file:
                names = elf.needed(file.read())
            for name in names:
                path = self._library(name)
                if not path:
                    raise HostError(f"{program} needs {name}, which no package of the image has")
                if os.path.basename(path) != os.path.basename(self._name) and path not in found:
                    found.add(path)
                    todo.append(path)
        return sorted(found)

    def triplet(self) -> str:
        """The name of the directory that has the architecture's libraries, and is part of other files' names."""
        names = [os.path.basename(path) for path in glob.glob(self.at("usr/lib/*-linux-gnu*"))]
        if len(names) != 1:
            raise HostError(f"the guest's packages have libraries of {len(names)} architectures instead of one")
        return names[0]

    def _library(self, name: str) -> str:
        """The path in the root of the library *name*; '' where there is none."""
        for folder in self._folders():
            if os.path.exists(self.real(f"{folder}/{name}")):
                return f"{folder}/{name}"
        return ""

    def _folders(self) -> list[str]:
        """Where the root has its libraries."""
        folders = [*sorted(glob.glob(self.at("usr/lib/*-linux-gnu*"))), self.at("usr/lib")]
        return ["/" + os.path.relpath(folder, self.path) for folder in folders]

    def _loader(self) -> tuple[str, ...]:
        if not self._linker:
            # lib64 on x86-64 and ppc64, lib on arm64, riscv64's and others' name the machine too
            names = [*glob.glob(self.at("usr/lib64/ld*.so.*")), *glob.glob(self.at("usr/lib/ld*.so.*"))]
            if not names:
                raise HostError("the C library's package holds no dynamic linker that runvm knows")
            self._name = "/" + os.path.relpath(min(names), self.path)
            self._linker = self.real(self._name)
            self._library_path = ":".join(self.at(folder) for folder in self._folders())
        return (self._linker, "--library-path", self._library_path)
