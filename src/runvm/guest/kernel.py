"""The guest's kernel: its modules' tree for the share, and the few that the initramfs itself needs."""

from __future__ import annotations

import os
import shutil

from runvm.errors import HostError
from runvm.guest.programs import Root

# What must work before the shared tree of modules is there (the share itself, the agent's channel, identity, memory),
# or is wanted warm in a template. Those of the second line are built into Debian's kernel; where they are modules, they
# belong here, too. Names are as in /proc/modules.
CORE = (
    *(
        "virtio_pci",
        "virtio_console",
        "virtio_net",
        "virtio_balloon",
        "virtio_mem",
        "virtio_rng",
        "virtiofs",
        "overlay",
    ),
    *("vmgenid", "af_packet", "pciehp", "acpiphp", "ipv6"),
    "vmw_vsock_virtio_transport",
)
OPTIONAL = ("ip_tables", "ip6_tables")
"""Where the kernel has them: iptables of the old kind loads these itself, as no container can; the kernel loads the
rest."""

_INDEX = ("modules.order", "modules.builtin", "modules.builtin.modinfo")


def version(unpacked: str) -> str:
    """The release (`uname -r`) of the kernel whose modules are in *unpacked*/lib/modules."""
    names = sorted(os.listdir(os.path.join(unpacked, "usr/lib/modules")))
    if len(names) != 1:
        raise HostError(f"the kernel's package has modules of {len(names)} kernels instead of one")
    return names[0]


def depmod(root: Root, base: str, release: str) -> None:
    """Write modules.dep and its like for *base*/lib/modules/*release* with *root*'s depmod."""
    root.call("/sbin/depmod", "-b", base, release)


def read_dependencies(directory: str) -> dict[str, list[str]]:
    """Module name → its file and those that it depends on, nearest first, as depmod left them in *directory*."""
    table: dict[str, list[str]] = {}
    with open(os.path.join(directory, "modules.dep")) as file:
        for line in file:
            path, _, needed = line.partition(":")
            table[module_name(path)] = [path, *needed.split()]
    return table


def module_name(path: str) -> str:
    """The name as in /proc/modules of a module's file."""
    return os.path.basename(path).split(".ko")[0].replace("-", "_")


def copy_core(modules: str, target: str) -> list[str]:
    """Copy CORE, what there is of OPTIONAL, and their dependencies to *target*, uncompressed; returns their names.

    A module that is built in needs no copying; one of CORE that is neither is an error.
    """
    dependencies = read_dependencies(modules)
    with open(os.path.join(modules, "modules.builtin")) as file:
        built_in = {module_name(line.strip()) for line in file}
    built_in |= _without_a_file(modules)
    missing = [name for name in CORE if name not in dependencies and name not in built_in]
    if missing:
        raise HostError(f"the kernel has no {', '.join(missing)}", do="name another kernel in /etc/runvm/config.toml")
    paths = sorted({path for name in (*CORE, *OPTIONAL) for path in dependencies.get(name, [])})
    for path in paths:
        copy_plain(os.path.join(modules, path), os.path.join(target, path))
    for name in _INDEX:
        if os.path.exists(os.path.join(modules, name)):
            shutil.copyfile(os.path.join(modules, name), os.path.join(target, name))
    return [module_name(path) for path in paths]


def _without_a_file(modules: str) -> set[str]:
    """Built-in modules that modules.builtin lacks, known by their parameters and aliases in modules.builtin.modinfo."""
    try:
        with open(os.path.join(modules, "modules.builtin.modinfo"), "rb") as file:
            return {entry.partition(b".")[0].decode().replace("-", "_") for entry in file.read().split(b"\0") if entry}
    except FileNotFoundError:
        return set()


def copy_plain(source: str, target: str) -> None:
    """Copy a module, uncompressed. Raises HostError for one that is compressed otherwise than by xz."""
    with open(source, "rb") as file:
        data = file.read()
    # Debian 13 compresses modules: in an initramfs without zstd and xz tools they have to be plain
    if source.endswith(".xz"):
        import lzma

        data, target = lzma.decompress(data), target[: -len(".xz")]
    elif not source.endswith(".ko"):
        raise HostError(f"{os.path.basename(source)} is compressed in a way that runvm can't undo")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(data)
