"""User Mode Linux's command line."""

from __future__ import annotations

from runvm.hypervisor.driver import Machine
from runvm.hypervisor.uml.arguments import KERNEL_ARGS, arguments

MACHINE = Machine("ptrace", 1, 1, 640, 0, "/k/linux", "/i/initramfs", "key", "quiet panic=-1")


def test_the_command_line_names_memory_lines_share_and_interfaces() -> None:
    assert arguments(MACHINE, agent=7, nics=(9, 10)) == [
        "/k/linux",
        "mem=640M",
        "initrd=/i/initramfs",
        "uml_dir=/memory/",
        "umid=vm",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        "ssl0=fd:7",
        "virtio_uml.device=/share:26",
        "vec0:transport=fd,fd=9,mac=02:72:76:00:00:01,mtu=1500,depth=64",
        "vec1:transport=fd,fd=10,mac=02:72:76:00:00:02,mtu=1500,depth=64",
        "quiet",
        "panic=-1",
    ]


def test_the_guest_is_told_where_its_agents_line_is() -> None:
    assert "runvm.agent=/dev/ttyS0" in KERNEL_ARGS.split()
