"""A host on which KVM works, wherever the tests run: QEMU emulates a processor with AMD-V, Debian's kernel in it loads
kvm_amd, and runvm's guests there run by the code paths of real KVM, in emulated time. Its system is made by
debootstrap."""

from __future__ import annotations

import os
import shutil

from framework.emulated_host import Machine, write
from framework.images import run, tidy

_BUILD_SECONDS = 3600.0
_SUITE = "bookworm"
_PACKAGES = (
    # the host itself
    "linux-image-amd64",
    "initramfs-tools",
    "udev",
    "kmod",
    "procps",
    "psmisc",
    "iproute2",
    "iputils-ping",
    "iptables",
    # runvm and what calls it
    "python3",
    "qemu-system-x86",
    "qemu-system-common",
    "crun",
    "runc",
    "docker.io",
    # what containers are made of
    "busybox-static",
)
_MODULES = "virtio_pci\nvirtio_blk\next4\n"
"""What the initramfs has: the fewer, the sooner an emulated processor has unpacked it."""


def _make(root: str, made: str) -> None:
    run("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, root, timeout=_BUILD_SECONDS)
    write(f"{root}/etc/initramfs-tools/conf.d/kvm-host", "MODULES=list\nCOMPRESS=gzip\n")
    write(f"{root}/etc/initramfs-tools/modules", _MODULES)
    run("chroot", root, "update-initramfs", "-u")
    tidy(root)
    for name in os.listdir(f"{root}/boot"):
        for prefix, target in (("vmlinuz-", "vmlinuz"), ("initrd.img-", "initramfs")):
            if name.startswith(prefix):
                shutil.copy(f"{root}/boot/{name}", f"{made}/{target}")


MACHINE = Machine(
    name="kvm-host",
    recipe=f"{_SUITE} {_PACKAGES} {_MODULES}",
    make=_make,
    vmm=("qemu-system-x86_64", "-machine", "q35", "-cpu", "EPYC,svm=on,npt=on"),
    memory_mib=4096,
    # The emulated processor has a steady counter, whatever the kernel finds by comparing it with slower clocks. Its
    # emulation of virtual machines at times leaves one processor waiting for the other: that ends the host within a
    # minute, and is told.
    kernel_args="console=ttyS0 mitigations=off tsc=reliable watchdog_thresh=30 softlockup_panic=1",
    reports=("-serial", "stdio"),
    line="/dev/ttyS1",
    modules="kvm_amd tun loop overlay bridge br_netfilter veth",
    factor=10.0,
    image="current",
)
