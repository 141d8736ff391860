"""User Mode Linux's command line for a machine: a pure function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.protocol.interfaces import nic_mac
from runvm.protocol.names import AGENT_LINE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runvm.hypervisor.driver import Machine

KERNEL_ARGS = (
    "quiet loglevel=4 panic=-1 oops=panic rcupdate.rcu_expedited=1 net.ifnames=0"
    # built in, this driver makes an interface that nobody asked for
    " dummy.numdummies=0"
    # a processor of 4 GHz, for the few waits that are loops: to measure it takes 70 to 80 ms
    " lpj=40000000"
    # these tables of hashes are cleared, and so taken from the host, as a whole
    " dhash_entries=16384 ihash_entries=8192"
    # the agent's line to the host
    f" {AGENT_LINE}/dev/ttyS0"
)


SHARE = "/share"
"""The socket of the share's relay in the jail."""
MEMORY = "/memory"
"""The directory for the file that is the guest's memory, which has no name there."""
_VIRTIO_FS = 26
MTU = 1500
_QUEUE = 64
"""Packets that a network interface takes at once."""


def arguments(machine: Machine, *, agent: int, nics: Sequence[int]) -> list[str]:
    """argv for *machine*; *agent* is the descriptor of the agent's line, *nics* those of the network interfaces'
    sockets. The console is the standard output."""
    argv = [
        machine.kernel,
        f"mem={machine.memory_mib}M",
        f"initrd={machine.initramfs}",
        f"uml_dir={MEMORY}/",
        "umid=vm",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        f"ssl0=fd:{agent}",
        f"virtio_uml.device={SHARE}:{_VIRTIO_FS}",
    ]
    for number, fd in enumerate(nics):
        argv.append(f"vec{number}:transport=fd,fd={fd},mac={nic_mac(number)},mtu={MTU},depth={_QUEUE}")
    return argv + machine.cmdline.split()
