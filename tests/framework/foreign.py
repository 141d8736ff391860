"""Programs of another architecture than the host's, of Debian's packages; and whether containers with them run here."""

from __future__ import annotations

import glob
import os
import subprocess

from framework import images
from runvm.config import Config
from runvm.errors import RunvmError
from runvm.guest import archive, image
from runvm.guest.apt import Apt
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
    if not glob.glob(f"{directory}/usr/bin/busybox"):
        os.makedirs(images.CACHE, exist_ok=True)
        apt = Apt(images.CACHE, archive.chosen(Config()), architecture)
        if not apt.fetched():
            apt.refresh()
        package = apt.closure(("busybox-static",))["busybox-static"]
        deb = apt.fetch((package,))[package.name]
        partial = f"{directory}.{os.getpid()}"
        subprocess.run(["dpkg-deb", "--extract", deb, partial], check=True, timeout=60)
        os.rename(partial, directory)
    return f"{directory}/usr/bin/busybox"
