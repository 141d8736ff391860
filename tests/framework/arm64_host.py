"""A host of the architecture arm64, emulated, its KVM included (the processor has EL2, where the host's kernel runs).
Its system is Debian 13's packages as they are unpacked, none of whose scripts has run; its kernel is that of the guest
image for arm64."""

from __future__ import annotations

import json
import os
import shutil
import tempfile

from framework import foreign
from framework.emulated_host import INIT, Machine, write
from runvm.guest import cpio, kernel

_IMAGES = os.environ.get("RUNVM_TEST_DATA_DIR", "/var/lib/runvm") + "/images"
_IMAGE = "current-arm64"
_PACKAGES = (
    # the host itself
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "sed",
    "mawk",
    "mount",
    "util-linux",
    "kmod",
    "hostname",
    "procps",
    "psmisc",
    "iproute2",
    "iputils-ping",
    "iptables",
    "e2fsprogs",
    # runvm and what calls it
    "python3",
    "qemu-system-arm",
    "virtiofsd",
    "crun",
    "runc",
    "docker.io",
    "docker-cli",
    # what containers are made of
    "busybox-static",
    "libc-bin",
    # what the unit tests call
    "apt",
    "make",
    "python3-hypothesis",
    "git",
    "bash-completion",
    "man-db",
)
_LINKS = {
    # what dpkg's alternatives would choose
    "usr/bin/awk": "mawk",
    "usr/sbin/iptables": "xtables-nft-multi",
    "usr/sbin/ip6tables": "xtables-nft-multi",
    "usr/sbin/iptables-save": "xtables-nft-multi",
    "usr/sbin/ip6tables-save": "xtables-nft-multi",
    "usr/sbin/ip6tables-restore": "xtables-nft-multi",
    "usr/sbin/iptables-restore": "xtables-nft-multi",
}
_EMPTY = ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "var/tmp", "var/lib/docker")
_FILES = ("etc/resolv.conf",)
"""Empty ones, for tests to mount theirs over."""
_CORE = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
"""The kernel modules by which the host finds its disk. ext4 asks for a checksum by its name alone."""
_INITRAMFS = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in {modules}; do /bin/busybox insmod /modules/$module; done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.2; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root {init}
"""


def _make(root: str, made: str) -> None:
    image = os.path.realpath(f"{_IMAGES}/{_IMAGE}")
    foreign.unpack(root, "arm64", *_PACKAGES)
    for name in _EMPTY:
        os.makedirs(f"{root}/{name}", exist_ok=True)
    for path, target in _LINKS.items():
        if not os.path.lexists(f"{root}/{path}"):
            os.symlink(target, f"{root}/{path}")
    for name in ("passwd", "group"):
        shutil.copy(f"{root}/usr/share/base-passwd/{name}.master", f"{root}/etc/{name}")
    for name in _FILES:
        os.close(os.open(f"{root}/{name}", os.O_CREAT | os.O_WRONLY, 0o644))
    with open(f"{root}/etc/group", "a", encoding="ascii") as file:
        file.write("docker:x:999:\nkvm:x:998:\n")
    with open(f"{image}/manifest.json", encoding="utf-8") as file:
        release = str(json.load(file)["kernel"])
    modules = f"{root}/usr/lib/modules/{release}"
    shutil.copytree(f"{image}/modules", modules, symlinks=True, dirs_exist_ok=True)
    shutil.copy(f"{image}/vmlinuz", f"{made}/vmlinuz")
    _make_initramfs(f"{root}/usr/bin/busybox", modules, f"{made}/initramfs")
    for name in ("tmp", "var/tmp"):
        os.chmod(f"{root}/{name}", 0o1777)


def _make_initramfs(busybox: str, modules: str, target: str) -> None:
    """busybox, and the modules that the disk needs, in the order in which they are loaded."""
    with tempfile.TemporaryDirectory() as stage:
        for name in ("bin", "dev", "root", "modules"):
            os.mkdir(f"{stage}/{name}")
        shutil.copy(busybox, f"{stage}/bin/busybox")
        dependencies = kernel.read_dependencies(modules)
        ordered: list[str] = []
        for name in _CORE:
            # nearest first: what is needed most comes last
            for path in reversed(dependencies.get(name, [])):
                file = os.path.basename(path)
                if file.removesuffix(".xz") not in ordered:
                    ordered.append(file.removesuffix(".xz"))
                    kernel.copy_plain(f"{modules}/{path}", f"{stage}/modules/{file}")
        write(f"{stage}/init", _INITRAMFS.format(modules=" ".join(ordered), init=INIT))
        with open(target, "wb") as archive:
            cpio.write(stage, archive)


MACHINE = Machine(
    name="arm64-host",
    recipe=f"{_PACKAGES} {_LINKS} {_EMPTY} {_FILES} {_CORE} {_INITRAMFS}",
    make=_make,
    vmm=(
        "qemu-system-aarch64",
        "-machine",
        "virt,virtualization=on,gic-version=3",
        "-cpu",
        "max,pauth-impdef=on,sve=off",
    ),
    memory_mib=4096,
    kernel_args="console=ttyAMA0",
    reports=("-chardev", "stdio,id=reports", "-device", "pci-serial,chardev=reports"),
    line="/dev/ttyS0",
    modules="8250_pci tun loop overlay bridge br_netfilter veth",
    factor=15.0,
    image=_IMAGE,
)
