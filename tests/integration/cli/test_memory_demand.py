"""Memory without a limit: the virtual machine starts small and grows as its containers need it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from framework.process import wait_until
from runvm.sandbox import registry

if TYPE_CHECKING:
    from framework.runtime import Box, Container, Runtime

pytestmark = pytest.mark.only("runvm", "the machine that grows is the virtual one")
MIB = 1 << 20
TAKE = "dd if=/dev/zero of=/dev/null bs={}M count=1 2>&1 | grep -c records"
"""busybox's dd fills so much memory at once."""


def total(container: Container) -> int:
    """The memory that the container sees, MiB."""
    return int(container.sh("awk '/MemTotal/ {print $2}' /proc/meminfo")) // 1024


def huge_pages(pid: int) -> int:
    """How much of its virtual machine's first memory a VMM has mapped by huge pages, bytes (proc_pid_smaps(5))."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        found = re.search(r"/ram\n(?:\w+:.*\n)*?ShmemPmdMapped: +(\d+) kB", file.read())
    assert found
    return int(found[1]) << 10


@pytest.mark.capability("hotplug_memory", "its memory is fixed at its start")
def test_a_container_without_a_limit_takes_what_it_needs(box: Box) -> None:
    """More than twice of what its machine began with, at once, and then some; nothing is killed."""
    container = box.idle().launch()
    assert 800 < total(container) <= 1024
    assert container.sh(TAKE.format(2000)) == "2"
    assert total(container) > 2000
    assert container.sh(TAKE.format(1900) + f" & {TAKE.format(1900)}; wait").split() == ["2", "2"]


@pytest.mark.capability("hotplug_memory", "its memory is fixed at its start")
def test_a_container_whose_limit_goes_takes_what_it_needs(box: Box, runtime: Runtime) -> None:
    """Neither the guest's limit is left nor that of the host, whose kernel would kill the virtual machine."""
    container = box.idle()
    container.bundle.resources.update({"memory": {"limit": 256 * MIB}, "pids": {"limit": 40}})
    container.launch()
    runtime.ok("update", "--memory", "-1", "--pids-limit", "-1", container.id)
    assert container.sh("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max").split() == ["max", "max"]
    assert container.sh(TAKE.format(2000)) == "2"
    assert container.status == "running"


@pytest.mark.capability("hotplug_memory", "its memory is fixed at its start")
def test_it_ends_at_the_setting(box: Box, runtime: Runtime) -> None:
    """max_memory_mib: what needs more is killed, and the container goes on."""
    with open(runtime.config_file, encoding="utf-8") as file:
        before = file.read()
    with open(runtime.config_file, "a", encoding="utf-8") as file:
        file.write("max_memory_mib = 1536\n")
    try:
        container = box.idle().launch()
    finally:
        with open(runtime.config_file, "w", encoding="utf-8") as file:
            file.write(before)
    assert container.sh(TAKE.format(1200)) == "2"
    assert container.sh(f"{TAKE.format(1900)}; true") == "0"
    assert 1300 < total(container) <= 1536
    assert container.status == "running"


def test_memory_may_be_reserved_beyond_what_there_is(box: Box) -> None:
    """As on a host of that size: what is reserved and not used isn't counted."""
    container = box.sh("cat /proc/sys/vm/overcommit_memory")
    assert container.run().stdout == b"1\n"


@pytest.mark.hypervisor("qemu", "the other has no templates")
def test_most_of_a_restored_machine_is_in_huge_pages(box: Box, runtime: Runtime) -> None:
    """They are got, mapped and freed in a fraction of the time; what is mostly empty doesn't get any."""
    if not os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        pytest.skip("this host's kernel has no huge pages")
    box.idle().launch()
    (name,) = os.listdir(f"{runtime.state_dir}/sandboxes")
    vmm = registry.processes(registry.locate(runtime.state_dir, name))["vmm"]
    assert 40 * MIB < huge_pages(vmm.pid) < 200 * MIB


@pytest.mark.capability("hotplug_memory", "its memory is fixed at its start")
@pytest.mark.slow
def test_what_is_free_for_some_time_is_taken_back(box: Box) -> None:
    """A machine that has grown for a moment's sake gets smaller again."""
    container = box.idle().launch()
    assert container.sh(TAKE.format(1900)) == "2"
    grown = total(container)
    wait_until(lambda: total(container) <= grown - 512, timeout=180, what="memory to be taken back", interval=5)
    assert container.sh(TAKE.format(1900)) == "2"


@pytest.mark.capability("hotplug_memory", "its memory is fixed at its start")
def test_a_container_with_a_limit_gets_no_more(box: Box) -> None:
    """Its machine's size is its limit's, and its limit holds."""
    container = box.sh(f"{TAKE.format(600)}; awk '/MemTotal/ {{print $2}}' /proc/meminfo")
    container.bundle.resources["memory"] = {"limit": 300 * MIB}
    records, size = container.run().stdout.split()
    assert records == b"0"
    assert int(size) // 1024 < 640
