"""The guest's kernel, initramfs and modules: where they are. `create` resolves, `image build|list|prune` manage them.

An image is a directory `<data_dir>/images/<first digits of its hash>`, complete from the moment that it has that name
and never changed: vmlinuz, initramfs, initramfs-uml (for User Mode Linux), modules/ (the guest's
/lib/modules/<version>), manifest.json. `current` is a symlink to the one built last. Building is in build.py, which the
start path doesn't load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from runvm import __version__
from runvm.errors import ConfigError, HostError
from runvm.linux import architecture
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.config import Config

_BUILD = "run 'runvm image build'"


class Image(NamedTuple):
    """What a VM boots from. *modules* is '' where an own kernel has none; *key* changes whenever any part does;
    *agent* is the version of the runvm that built it."""

    name: str
    directory: str
    kernel: str
    initramfs: str
    modules: str
    kernel_version: str
    key: str
    agent: str


class Built(NamedTuple):
    """An image on this host, as `image list` shows it; *packages_taken* is when the archive had its packages as the
    newest, 0 where that isn't known; each architecture has one that is *current*."""

    name: str
    directory: str
    architecture: str
    kernel_version: str
    packages_taken: int
    created: int
    size: int
    current: bool


class ImageManifest(NamedTuple):
    """What is read of manifest.json."""

    hash: str
    kernel_version: str
    created: int
    sizes: dict[str, int]
    agent: str
    packages_taken: int
    architecture: str


def images_directory(config: Config) -> str:
    """Where the images are."""
    return os.path.join(config.data_dir, "images")


def link(arch: str) -> str:
    """The name of the symlink to the image of the setting `arch` that was built last: each architecture has one."""
    return f"current-{arch}" if architecture.is_foreign(arch) else "current"


def resolve(config: Config, kernel_format: str = "bzImage") -> Image:
    """The image that *config* asks for: by name or path, else the one built last; its own files replace an image's.

    *kernel_format* is what the hypervisor boots (see Capabilities): 'bzImage', or 'uml', which isn't part of an image
    but built apart.

    Raises: HostError (no image has been built, or by another version of runvm), ConfigError (a file or an image that
    *config* names isn't there, or is for another architecture).
    """
    found = _resolve(config)
    if kernel_format == "uml" and not config.kernel:
        return _with_uml_kernel(config, found)
    return found


def _resolve(config: Config) -> Image:
    # files of one's own, and an image that is named, are for the host's architecture
    own = not architecture.is_foreign(config.arch)
    if own and config.kernel and config.initramfs:
        return _with_own_files(config, Image("", "", "", "", "", "", "", ""))
    image, arch = _read(_locate(config))
    if arch != architecture.chosen(config.arch):
        raise ConfigError(
            f"image: the guest image {image.name} is for {arch}, not for {architecture.chosen(config.arch)}",
            do="'runvm image list' shows those that are there",
        )
    if image.agent != __version__:
        raise HostError(
            f"the guest image {image.name} was built by runvm {image.agent}, this is {__version__}",
            do=_how_to_build(config),
        )
    if own and (config.kernel or config.initramfs or config.modules):
        return _with_own_files(config, image)
    return image


def _with_uml_kernel(config: Config, image: Image) -> Image:
    """*image* with the kernel for User Mode Linux, which needs no modules. Raises HostError where there is none."""
    import hashlib

    from runvm.guest import uml_kernel

    kernel = uml_kernel.find(config)
    key = hashlib.sha256(f"{image.key} {kernel.key}".encode()).hexdigest()
    own = os.path.join(image.directory, uml_kernel.INITRAMFS)
    if not config.initramfs and os.path.exists(own):
        image = image._replace(initramfs=own)
    return image._replace(kernel=kernel.path, modules="", kernel_version=kernel.release, key=key)


def take(config: Config, kernel_format: str = "bzImage") -> tuple[Image, int]:
    """The image that *config* names, its kernel in that format, and a descriptor that keeps `image prune` from removing
    it while it is open (-1 where all files are the user's own). Raises as resolve() does."""
    import fcntl

    while True:
        image = resolve(config, kernel_format)
        if not image.directory:
            return image, -1
        try:
            fd = os.open(image.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # pruned since it was found
        fcntl.flock(fd, fcntl.LOCK_SH)
        try:
            if os.path.samestat(os.stat(image.directory), os.fstat(fd)):
                return image, fd
        except FileNotFoundError:
            pass
        os.close(fd)


def build(
    config: Config, progress: Callable[[str], None], notice: Callable[[str], None], *, update: bool = False
) -> Image:
    """Build the image and make it the current one: of the packages that the current one has, or the archive's newest
    where there is none, or if *update*. *notice* is told of newer packages that weren't taken.

    Fast where nothing has changed. Raises: HostError (a tool, a package or the right to do it is missing).
    """
    from runvm.guest import build as builder
    from runvm.guest.plan import Report

    return _read(builder.build(config, Report(progress, notice), link(config.arch), update=update))[0]


def list_images(config: Config) -> list[Built]:
    """The images on this host, newest first."""
    base = images_directory(config)
    found = []
    for name in _names(base):
        directory = os.path.join(base, name)
        try:
            manifest = _manifest(directory)
        except HostError:
            continue
        size = sum(manifest.sizes.values())
        latest = os.path.join(base, link(manifest.architecture))
        is_current = os.path.realpath(directory) == os.path.realpath(latest)
        version, taken = manifest.kernel_version, manifest.packages_taken
        found.append(Built(name, directory, manifest.architecture, version, taken, manifest.created, size, is_current))
    return sorted(found, key=lambda image: (image.created, image.name), reverse=True)


def prune(config: Config, keep: int = 1) -> list[str]:
    """Remove all but the newest *keep* images of each architecture; returns the names removed.

    The current ones and those that a VM runs from stay, and cached packages that an image left was built from.
    """
    from runvm.guest import store

    images = list_images(config)
    kept: dict[str, int] = {}
    spare = []
    for image in images:
        kept[image.architecture] = kept.get(image.architecture, 0) + 1
        if kept[image.architecture] > keep and not image.current:
            spare.append(image.name)
    return store.remove(config.data_dir, spare)


def _names(base: str) -> list[str]:
    try:
        names = [entry.name for entry in os.scandir(base) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [name for name in names if not name.startswith(".")]


def _locate(config: Config) -> str:
    """The directory of the image that *config* names, symlinks resolved: a build that ends now changes nothing."""
    base = images_directory(config)
    foreign = architecture.is_foreign(config.arch)
    if not config.image or foreign:
        latest = os.path.join(base, link(config.arch))
        if not os.path.exists(latest):
            kind = f"{config.arch} guest image" if foreign else "guest image"
            raise HostError(f"there is no {kind} in {base}", do=_how_to_build(config))
        return os.path.realpath(latest)
    path = config.image if "/" in config.image else os.path.join(base, config.image)
    if not os.path.isdir(path):
        raise ConfigError(f"image: there is no guest image {path}", do="'runvm image list' shows those that are there")
    return os.path.realpath(path)


def _how_to_build(config: Config) -> str:
    option = f" --arch {config.arch}" if architecture.is_foreign(config.arch) else ""
    return f"run 'runvm image build{option}'"


def _manifest(directory: str) -> ImageManifest:
    path = os.path.join(directory, "manifest.json")
    try:
        with open(path, "rb") as file:
            fields = json.load(file)
        return ImageManifest(
            str(fields["hash"]),
            str(fields["kernel"]),
            int(fields["created"]),
            dict(fields["sizes"]),
            str(fields["agent"]),
            int(fields.get("taken", 0)),
            str(fields.get("architecture") or architecture.host()),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"can't read {path}: {error}", do=_BUILD) from error


def _read(directory: str) -> tuple[Image, str]:
    """The image there, and its architecture. Raises HostError."""
    manifest = _manifest(directory)
    image = Image(
        name=os.path.basename(directory),
        directory=directory,
        kernel=os.path.join(directory, "vmlinuz"),
        initramfs=os.path.join(directory, "initramfs"),
        modules=os.path.join(directory, "modules"),
        kernel_version=manifest.kernel_version,
        key=manifest.hash,
        agent=manifest.agent,
    )
    return image, manifest.architecture


def _with_own_files(config: Config, image: Image) -> Image:
    """*image* with the configuration's files in place of its own; they count into the key by path, size and time."""
    import hashlib

    parts = [image.key]
    for field in ("kernel", "initramfs", "modules"):
        path: str = getattr(config, field)
        if not path:
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            raise ConfigError(f"{field}: can't read {path}: {error.strerror}") from error
        parts.append(f"{field} {os.path.realpath(path)} {status.st_ino} {status.st_size} {status.st_mtime_ns}")
        image = image._replace(**{field: os.path.realpath(path)})
    if config.kernel:
        version = kernel_version(config.kernel)
        if version != image.kernel_version and not config.modules:
            image = image._replace(modules="")  # another kernel's modules can't be loaded
        image = image._replace(kernel_version=version)
    return image._replace(key=hashlib.sha256("\n".join(parts).encode()).hexdigest())


def kernel_version(path: str) -> str:
    """The release of the x86 kernel in *path*, '' where it isn't a bzImage. Source: Documentation/arch/x86/boot.rst."""
    with open(path, "rb") as file:
        head = file.read(0x10000)
    if head[0x202:0x206] != b"HdrS":
        return ""
    offset = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    words = head[offset : offset + 256].split(b"\0", 1)[0].split()
    return words[0].decode(errors="replace") if words else ""
