"""What an image's files are, by hash: it names an image, and tells whether one still is what was built.

The modules themselves are as in the kernel's packages, whose hashes stand for them; their indexes are depmod's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence


def hashes(directory: str, names: Sequence[str]) -> dict[str, str]:
    """Those of the files *names* of an image. Raises OSError."""
    return {name: _sha256(os.path.join(directory, name)) for name in names}


def digest(directory: str, files: Mapping[str, str], release: str, packages: Sequence[str]) -> str:
    """The hash of an image with *files*, as hashes() tells them, whose kernel *release* comes from *packages* of these
    hashes. Raises OSError."""
    modules = os.path.join(directory, "modules")
    indexes = sorted(name for name in os.listdir(modules) if os.path.isfile(os.path.join(modules, name)))
    identity = {
        "files": files,
        "kernel": release,
        "packages": packages,
        "indexes": [(name, _sha256(os.path.join(modules, name))) for name in indexes],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def modules_size(directory: str) -> int:
    """The bytes of all its modules. Raises OSError."""
    modules = os.path.join(directory, "modules")
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(modules) for name in names)


def is_whole(directory: str, manifest: Mapping[str, object]) -> bool:
    """Whether the image there still is what *manifest* tells of it; of the modules alone that all have their length."""
    packages, names, sizes = manifest.get("packages"), manifest.get("files"), manifest.get("sizes")
    if not isinstance(packages, list) or not isinstance(names, dict) or not isinstance(sizes, dict):
        return False
    try:
        kernel = [str(package["sha256"]) for package in packages if package["kernel"]]
        found = digest(directory, hashes(directory, list(names)), str(manifest.get("kernel")), kernel)
        return found == manifest.get("hash") and modules_size(directory) == sizes.get("modules")
    except (OSError, KeyError, TypeError):
        return False


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
