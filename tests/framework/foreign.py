"""Programs of another architecture than the host's, of Debian's packages; and whether containers with them run here."""

from __future__ import annotations

import os
import shutil
import tempfile

from framework import images
from runvm.config import Config
from runvm.errors import RunvmError
from runvm.guest import archive, image, packages
from runvm.guest.apt import Apt
from runvm.guest.programs import Root
from runvm.hypervisor.qemu.driver import Qemu
from runvm.linux.architecture import KNOWN, host

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


def install_perl(target: str, architecture: str) -> None:
    """perl-base for *architecture* in the root filesystem *target*, with the libraries that it loads."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = f"{scratch}/root"
        unpack(tree, architecture, "perl-base")
        root = Root(tree)
        libraries = root.libraries(["/usr/bin/perl"])
        for path in ("/usr/bin/perl", *libraries):
            # its own directory of libraries needs no /usr/lib that is /lib
            place = path.replace("/usr/lib/ld", "/lib/ld").replace("/usr/lib64/", "/lib64/")
            os.makedirs(os.path.dirname(target + place), exist_ok=True)
            shutil.copy(root.real(path), target + place)
        modules = f"usr/lib/{triplet(architecture)}/perl-base"
        shutil.copytree(f"{tree}/{modules}", f"{target}/{modules}", symlinks=True)


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
