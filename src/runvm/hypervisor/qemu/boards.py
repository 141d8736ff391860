"""What differs between the machines that QEMU makes for each architecture: program, board, processor, console."""

from __future__ import annotations

from runvm.records import NamedTuple


class Board(NamedTuple):
    """A machine's parts. *under_kvm* and *emulated* are added to *machine*, *processor* is the one under emulation,
    *devices* are those that only this board has, *kernel_args* the words for the guest's kernel. *package* is
    Debian's, which has *program*."""

    program: str
    package: str
    machine: str
    under_kvm: str
    emulated: str
    processor: str
    devices: tuple[str, ...]
    kernel_args: str


BOARDS = {
    "amd64": Board(
        "qemu-system-x86_64",
        "qemu-system-x86",
        "q35,usb=off,vmport=off,smm=off,graphics=off,hpet=off",
        "",
        "",
        # with these, kernel and C library copy by an instruction that QEMU carries out byte by byte
        "max,-erms,-fsrm",
        ("vmgenid,guid=auto",),
        # on a busy host an emulated timer loses ticks, and the kernel's test of it ends in a guest that hangs
        "console=ttyS0 reboot=t no_timer_check",
    ),
    "arm64": Board(
        "qemu-system-aarch64",
        "qemu-system-arm",
        # ACPI is for firmware, which there is none of
        "virt,usb=off,acpi=off",
        ",gic-version=host",
        # version 2 takes 8 processors at most
        ",gic-version=3",
        # the real algorithm for signed pointers takes longer than all else that a function does; that of vectors
        # without a fixed length isn't worth its place in each task's state
        "max,pauth-impdef=on,sve=off",
        (),
        # no memory set aside for devices that want it in one piece: it counts as available, but not for the kernel,
        # which kills before the containers come to the limit at which more is plugged in
        "console=ttyAMA0 cma=0",
    ),
}
