"""The guest's kernel for User Mode Linux, as `make kernel` (packaging/kernel/build) leaves it in the data directory."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from runvm.errors import HostError
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.config import Config

ARCHITECTURE = "amd64"
"""The only one that has User Mode Linux."""
INITRAMFS = "initramfs-uml"
"""An image's initramfs for it, without what loads kernel modules: a third less to read at the start and to keep."""
FIX = "run 'make kernel' in runvm's source directory"


class Kernel(NamedTuple):
    """A kernel that is a program: its path, the release that `uname -r` says in the guest, and a hash of it."""

    path: str
    release: str
    key: str


def find(config: Config) -> Kernel:
    """The one built last. Raises HostError where there is none."""
    directory = os.path.realpath(f"{config.data_dir}/kernels/uml/current")
    try:
        with open(f"{directory}/manifest.json") as file:
            manifest = json.load(file)
        kernel = Kernel(f"{directory}/linux", str(manifest["kernel"]), str(manifest["sha256"]))
    except FileNotFoundError as error:
        raise HostError(f"there is no kernel for User Mode Linux in {config.data_dir}/kernels/uml", do=FIX) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"can't read {directory}/manifest.json: {error}", do=FIX) from error
    if not os.access(kernel.path, os.X_OK):
        raise HostError(f"{kernel.path} isn't a program", do=FIX)
    return kernel
