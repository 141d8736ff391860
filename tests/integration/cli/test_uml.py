"""User Mode Linux: how it is confined, what a guest that has taken it over may ask of the host, what it can't do."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import pytest

from framework import host, process, rootfs
from framework.injected import injected
from framework.network import NetNamespace, address, veth
from framework.runtime import HYPERVISOR

if TYPE_CHECKING:
    from framework.runtime import Box, Runtime

pytestmark = pytest.mark.skipif(HYPERVISOR != "uml", reason="of User Mode Linux: HYPERVISOR=uml")

_DENIED: dict[str, tuple[int | bytes, ...]] = {
    "bpf": (321, 0, 0, 0),
    "mount": (165, b"none\0", b"/memory\0", b"tmpfs\0", 0, 0),
    "unshare a user namespace": (272, 0x10000000),
    "clone into a user namespace": (56, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "setns": (308, 0, 0),
    "keyctl": (250, 0, 0),
    "add_key": (248, b"user\0", b"x\0", b"x", 1, -3),
    "open_by_handle_at": (304, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "userfaultfd": (323, 0),
    "bind": (49, 0, 0, 0),
    "listen": (50, 0, 1),
    "accept": (43, 0, 0, 0),
    "chroot": (161, b"/\0"),
    "seccomp": (317, 1, 0, 0),
    "setuid": (105, 0),
    "mknod": (133, b"/memory/x\0", 0o20666, 0x101),
    "execveat": (322, -100, b"/bin/sh\0", 0, 0, 0),
    "symlink": (88, b"/\0", b"/memory/x\0"),
    "syslog": (103, 2, 0, 0),
    "memfd_create": (319, b"x\0", 0),
}
_ENDED: dict[str, tuple[int | bytes, ...]] = {
    "execve": (59, b"/bin/sh\0", 0, 0),
    "socket": (41, 2, 1, 0),
    "socketpair": (53, 1, 1, 0, 0),
    "connect": (42, 0, 0, 0),
    "prctl": (157, 38, 0, 0, 0, 0),
    "unlink": (87, b"/linux\0"),
}


def test_it_is_confined(box: Box) -> None:
    """A user of its own without capabilities, a filter, namespaces, a root with little in it; for the guest's kernel
    and for its programs alike, which are processes that the kernel traces."""
    container = box.sleeper()
    vmm = host.processes_of(container)["vmm"]
    programs = process.descendants(vmm)
    assert programs
    for pid in (vmm, *programs):
        status = status_of(pid)
        assert int(status["Uid"].split()[0]) >= 0x72760000
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        for kind in ("mnt", "net", "ipc", "uts", "pid"):
            assert host.namespace(pid, kind) != host.namespace("self", kind)
    with open(f"/proc/{vmm}/net/dev", encoding="ascii") as file:
        assert [line.split(":")[0].strip() for line in file if ":" in line] == ["lo"]
    root = f"/proc/{vmm}/root"
    files = [os.path.join(folder, name).removeprefix(root) for folder, _, names in os.walk(root) for name in names]
    known = re.compile(
        r"/.*/(linux|initramfs-uml|ld-linux-x86-64\.so\.2|libc\.so\.6)|/dev/(null|zero|urandom)|/proc/cpuinfo"
        r"|/ram|/more|/share|/memory/vm/pid|/bin|/sbin|/lib"
    )
    assert [path for path in files if not known.fullmatch(path)] == []
    kinds = re.compile(
        r"/dev/(null|zero|urandom)|socket:.*|anon_inode:.*|pipe:.*|/memory/#.*|/memory/vm_file.*|/dev/.*"
    )
    assert [path for path in process.open_files(vmm) if not kinds.fullmatch(path)] == []


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        pairs = (line.split(":", 1) for line in file)
        return {key: value.strip() for key, value in pairs}


def test_a_guest_that_has_taken_it_over_is_denied_all_but_little(box: Box) -> None:
    """Each call is made by User Mode Linux itself, as its guest's kernel could: EPERM, or ENOSYS for what only a start
    needs. The guest goes on after it."""
    container = box.sleeper()
    vmm = host.processes_of(container)["vmm"]
    with injected(vmm) as kernel:
        denied = {name: kernel.call(*call) for name, call in _DENIED.items()}
        ended = {name: kernel.call(*call) for name, call in _ENDED.items()}
        opened = {path: kernel.call(2, path, 0) for path in (b"/etc/passwd\0", b"/proc/1/mem\0", b"/usr/bin/env\0")}
        killed = kernel.call(62, os.getpid(), 9)
    assert {name for name, result in denied.items() if result != -errno.EPERM} == set()
    assert {name for name, result in ended.items() if result != -errno.ENOSYS} == set()
    assert set(opened.values()) == {-errno.ENOENT}
    assert killed == -errno.ESRCH, "the host's processes aren't in its PID namespace"
    assert container.sh("echo still here") == "still here"


def test_what_it_cant_do_is_refused_clearly(box: Box) -> None:
    """Memory beyond what the VM started with; and the limit stays as it was."""
    container = box.idle()
    container.bundle.linux.setdefault("resources", {})["memory"] = {"limit": 256 << 20}
    container.launch()
    assert container.sh("nproc") == "1"
    result = container.runtime.call("update", "--memory", str(8 << 30), container.id)
    assert result.code != 0
    assert "can't grow" in result.error
    assert container.sh("echo on") == "on"


def test_a_checkpoint_is_refused_and_the_container_goes_on(box: Box, runtime: Runtime) -> None:
    """With what would have to be chosen instead."""
    container = box.sleeper()
    for command in (["checkpoint", container.id], ["restore", "--bundle", container.bundle.path, "another"]):
        result = runtime.call(*command)
        assert result.code == 1
        assert "'uml' can't save a virtual machine that runs" in result.error
        assert 'set hypervisor = "qemu"' in result.error
    assert container.status == "running"


def test_it_is_named_where_somebody_asks(box: Box, runtime: Runtime) -> None:
    """`state`, `features`, `doctor` and `--debug`."""
    container = box.sleeper()
    state = container.state()
    assert (state["hypervisor"], state["accelerator"]) == ("uml", "ptrace")
    assert runtime.ok("features").json()["annotations"]["io.runvm.hypervisor"] == "uml"
    another = box("true")
    another.bundle.save()
    result = runtime.call("--debug", "run", "--bundle", another.bundle.path, another.id)
    assert "hypervisor uml, accelerator ptrace" in f"{result.log}"


def test_an_interface_that_is_taken_down_comes_up_again(box: Box) -> None:
    """The NIC's socket outlives `ip link set down`, and packets pass again."""
    near, far = NetNamespace(f"rvt{os.getpid()}-unear"), NetNamespace(f"rvt{os.getpid()}-ufar")
    try:
        veth(near, far, name="eth0", far_name="far0")
        address(near, "eth0", "10.79.0.2/24")
        address(far, "far0", "10.79.0.1/24")
        container = box.idle()
        container.bundle.namespace("network", near.path)
        for held in container.bundle.process["capabilities"].values():
            held += ["CAP_NET_ADMIN", "CAP_NET_RAW"]
        container.launch()
        container.sh("ping -c 1 -W 10 10.79.0.1")
        container.sh("ip link set eth0 down; ip link set eth0 up; ping -c 1 -W 10 10.79.0.1")
        container.delete("--force")
    finally:
        near.close()
        far.close()


def test_a_guest_that_panics_ends_its_container(box: Box, runtime: Runtime) -> None:
    """For want of memory here. User Mode Linux would go on sending itself a signal that doesn't end it."""
    container = box.sleeper()
    vmm = host.processes_of(container)["vmm"]
    fill = "mount -t tmpfs -o size=3g x /mnt; dd if=/dev/zero of=/mnt/x bs=1M count=2000"
    runtime.call("debug", "shell", container.id, stdin=f"echo 2 >/proc/sys/vm/panic_on_oom; {fill}\n".encode())
    assert container.wait(60) != 0
    container.wait_status("stopped", timeout=10)
    process.wait_until(lambda: not process.alive(vmm), timeout=10, what="the VMM's end")


def test_its_processes_stay_on_one_processor_while_they_have_work(box: Box) -> None:
    """They take turns, and to wake each other on two takes longer than most turns. Without work its next processor is
    the host's choice."""
    if os.cpu_count() == 1:
        pytest.skip("there is one processor")
    container = box.sleeper()
    vmm = host.processes_of(container)["vmm"]

    def places() -> list[str]:
        return [status_of(pid)["Cpus_allowed_list"] for pid in (vmm, *process.descendants(vmm))]

    everywhere = status_of(os.getpid())["Cpus_allowed_list"]
    process.wait_until(lambda: places()[0] == everywhere, timeout=20, what="the kernel left to the host")
    busy = box.runtime.start("exec", container.id, "sh", "-c", "while :; do :; done")
    try:
        process.wait_until(
            lambda: (found := places())[0].isdigit() and found.count(found[0]) > 1,
            timeout=20, interval=0.01, what="the kernel and a program on one processor",
        )  # fmt: skip
    finally:
        process.stop(busy, 10)


def test_two_with_work_are_not_on_one_processor(box: Box) -> None:
    """Each looks for a free one now and then, and finds it however they began."""
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("there is one processor")
    kernels = []
    for _ in range(2):
        container = box.sh("while :; do :; done").launch()
        kernels.append(host.processes_of(container)["vmm"])
    only = {min(os.sched_getaffinity(0))}
    for vmm in kernels:
        for pid in (vmm, *process.descendants(vmm)):
            os.sched_setaffinity(pid, only)

    def apart() -> bool:
        found = [status_of(vmm)["Cpus_allowed_list"] for vmm in kernels]
        return found[0] != found[1] and all(place.isdigit() for place in found)

    process.wait_until(apart, timeout=60, interval=0.01, what="each on a processor of its own")


def test_all_of_its_memory_can_be_used(box: Box) -> None:
    """Of which the kernel keeps books only as far as it is asked for; what it tells counts it all from the start."""
    container = box.idle()
    rootfs.install(container.bundle.rootfs, "awk", "cp", "dd", "md5sum")
    container.bundle.mount("/t", "tmpfs", "tmpfs", "rw", "size=1g")
    container.launch()
    told = container.sh("awk '/^Mem(Total|Free|Available)/ {print $2}' /proc/meminfo").split()
    assert [int(kib) >> 10 > 1900 for kib in told] == [True] * 3
    container.sh("dd if=/dev/urandom of=/t/x bs=1M count=400 && cp /t/x /t/y")
    sums = container.sh("md5sum </t/x; md5sum </t/y").splitlines()
    assert sums[0] == sums[1]
    free = int(container.sh("awk '/^MemFree/ {print $2}' /proc/meminfo")) >> 10
    assert int(told[0]) / 1024 - 1000 < free < int(told[0]) / 1024 - 800
    assert "oom_kill 0" in container.sh("grep oom_kill /proc/vmstat")
