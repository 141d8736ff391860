"""QEMU's command line for a machine, as a pure function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.hypervisor.qemu.boards import BOARDS
from runvm.protocol.interfaces import nic_mac
from runvm.protocol.names import AGENT_PORT, SHARE_TAG

if TYPE_CHECKING:
    from runvm.hypervisor.driver import Machine

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
PORTS = 8
"""Empty PCIe root ports: one for the share, the others for further NICs."""
_ALIGN = ",align=2M"  # so that a huge page of the file is mapped as one
TRANSLATION_MIB = 64
"""Room for translated code under emulation; QEMU's own default is 1 GiB, which a long-lived VM would come to fill."""


def arguments(machine: Machine, fds: dict[str, int], *, program: str, restore: bool) -> list[str]:
    """QEMU's argv for *machine*; *fds* are the descriptors qmp, agent, console and tap, and that of a share that isn't
    plugged in later."""
    accelerator = "kvm" if machine.accelerator == "kvm" else f"tcg,thread=multi,tb-size={TRANSLATION_MIB}"
    max_vcpus = machine.max_vcpus
    board = BOARDS[machine.architecture]
    controller = board.under_kvm if machine.accelerator == "kvm" else board.emulated
    argv = [
        program, "-name", "runvm,debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-S",  # noqa: E501
        "-sandbox", _SANDBOX,
        "-machine", f"{board.machine}{controller},memory-backend=ram",
        "-accel", accelerator,
        "-cpu", "host" if machine.accelerator == "kvm" else board.processor,
        "-smp", f"{max_vcpus},sockets=1,cores={max_vcpus},threads=1",
        "-m", f"{machine.memory_mib}M,maxmem={machine.memory_mib + machine.growth_mib}M",
        "-object", f"memory-backend-file,id=ram,size={machine.memory_mib}M,mem-path=/ram,share=on{_ALIGN}",
        "-object", f"memory-backend-file,id=more,size={machine.growth_mib}M,mem-path=/more,share=on{_ALIGN}",
        "-device", "virtio-mem-pci,id=growth,memdev=more,requested-size=0,disable-legacy=on",
        "-chardev", f"socket,id=qmp,fd={fds['qmp']}", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=console,fd={fds['console']}", "-serial", "chardev:console",
        "-device", "virtio-serial-pci,id=serial,max_ports=2",
        "-chardev", f"socket,id=agent,fd={fds['agent']}",
        "-device", f"virtserialport,chardev=agent,name={AGENT_PORT},nr=1",
        "-netdev", f"tap,id=nic0,fd={fds['tap']}",
        "-device", f"virtio-net-pci,id=nic0,netdev=nic0,mac={nic_mac(0)},romfile=,disable-legacy=on",
        "-device", "virtio-balloon-pci,free-page-reporting=on,disable-legacy=on",
    ]  # fmt: skip
    for device in board.devices:
        argv += ["-device", device]
    for number in range(PORTS):
        argv += ["-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1}"]
    if fds.get("share", -1) >= 0:
        argv += ["-chardev", f"socket,id=share,fd={fds['share']}"]
        argv += ["-device", f"vhost-user-fs-pci,id=share,chardev=share,tag={SHARE_TAG},bus=port0"]
    if restore:
        argv += ["-incoming", "defer"]
    else:
        argv += ["-kernel", machine.kernel, "-initrd", machine.initramfs, "-append", cmdline(machine)]
    return argv


def cmdline(machine: Machine) -> str:
    """The kernel's, which brings up as many processors as the machine begins with. The others are there and offline
    until the agent takes them into use: Linux 6.12 counts none as hot-pluggable that QEMU tells it may come."""
    return f"{BOARDS[machine.architecture].kernel_args} {machine.cmdline} maxcpus={machine.vcpus}"
