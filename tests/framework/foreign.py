"""Programs of another architecture than the host's, of Debian's packages; and whether containers with them run here."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import lru_cache
from typing import TYPE_CHECKING

from framework import images
from runvm.config import Config
from runvm.errors import RunvmError
from runvm.guest import archive, image, packages
from runvm.guest.apt import Apt
from runvm.guest.programs import Root
from runvm.guest.pythonpath import interpreter
from runvm.hypervisor.qemu.driver import Qemu
from runvm.linux.architecture import KNOWN, host

if TYPE_CHECKING:
    from collections.abc import Sequence

OTHER = next(name for name in KNOWN if name != host())
"""The one that tests of containers for another architecture use."""


def lacks(architecture: str) -> str:
    """Why no container for *architecture* runs here; '' where they do."""
    config = Config(arch=architecture, data_dir=os.environ.get("RUNVM_TEST_DATA_DIR") or Config().data_dir)
    try:
        image.resolve(config)
        Qemu(config).program()
    except RunvmError as error:
        return f"no containers for {architecture} here: {error.message}: {error.do}"
    return ""


def busybox(architecture: str) -> str:
    """The path of Debian's busybox-static for *architecture*, fetched by apt and kept in the tests' cache."""
    directory = f"{images.CACHE}/busybox-{architecture}"
    if not os.path.exists(directory):
        partial = f"{directory}.{os.getpid()}"
        unpack(partial, architecture, "busybox-static", alone=True)
        os.rename(partial, directory)
    return f"{directory}/usr/bin/busybox"


def triplet(architecture: str = "") -> str:
    """The name of the directory of *architecture*'s libraries; '': of the host's."""
    return KNOWN[architecture or host()].libraries


def install(target: str, architecture: str, package: str, program: str) -> None:
    """*program* of Debian's *package* for *architecture* in the root filesystem *target*, with the libraries that it
    loads."""
    root = Root(_tree(architecture, package))
    linked = os.path.exists(root.at(f"/usr/lib/{triplet(architecture)}/libc.so.6"))  # else it is static
    _copy_files(target, root, (program, *(root.libraries([program]) if linked else ())))


def copy(target: str, architecture: str, package: str, path: str) -> None:
    """The directory *path* of Debian's *package* for *architecture* in the root filesystem *target*."""
    shutil.copytree(_tree(architecture, package) + path, target + path, symlinks=True, dirs_exist_ok=True)


def install_python(target: str, architecture: str) -> None:
    """Debian's Python for *architecture*, as /usr/bin/python3, with all of its library."""
    names = ("python3-minimal", "libpython3-stdlib")
    root = Root(_tree(architecture, *names))
    program = interpreter(root)
    library = program.replace("/usr/bin/", "/usr/lib/")
    shutil.copytree(root.at(library), target + library, symlinks=True, dirs_exist_ok=True)
    extensions = [f"{library}/lib-dynload/{name}" for name in os.listdir(root.at(f"{library}/lib-dynload"))]
    _copy_files(target, root, (program, *root.libraries([program, *extensions])))
    os.symlink(os.path.basename(program), f"{target}/usr/bin/python3")


def _copy_files(target: str, root: Root, paths: Sequence[str]) -> None:
    """Files of *root*, whose /usr is merged, to *target*, whose /usr isn't."""
    for path in paths:
        place = path.replace("/usr/lib/ld", "/lib/ld").replace("/usr/lib64/", "/lib64/")
        os.makedirs(os.path.dirname(target + place), exist_ok=True)
        if not os.path.exists(target + place):
            shutil.copy(root.real(path), target + place)


@lru_cache
def _tree(architecture: str, *names: str) -> str:
    """A directory with those packages and what they depend on, for this session."""
    scratch = tempfile.mkdtemp(prefix="rvt-tree-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    unpack(f"{scratch}/root", architecture, *names)
    return f"{scratch}/root"


def unpack(target: str, architecture: str, *names: str, alone: bool = False) -> None:
    """Fill *target* (made here) with Debian's packages *names* for *architecture*, with all that they depend on unless
    *alone*. Nothing of them is run, so what their scripts would set up isn't."""
    os.makedirs(images.CACHE, exist_ok=True)
    apt = Apt(images.CACHE, archive.chosen(Config()), architecture)
    if not apt.fetched():
        apt.refresh()
    found = apt.closure(names)
    wanted = [found[name] for name in (names if alone else found)]
    Root(target).make_merged_usr()
    for deb in apt.fetch(wanted).values():
        packages.unpack(deb, target)
