"""Limits by docker run, as the container sees them and as they are enforced."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from framework.docker import IMAGE
from framework.process import wait_until
from framework.runtime import has_capability
from runvm.cgroup.limits import weight_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.docker import Dockerd
    from framework.runtime import Runtime

GROUPS = "/sys/fs/cgroup"
CPU_SHARES = 512
CPU_WEIGHT = weight_of(CPU_SHARES)


def shown(*files: str) -> str:
    """A script that prints the first of the cgroup's files that is there, for version 2 and 1."""
    return " || ".join(f"cat {GROUPS}/{file} 2>/dev/null" for file in files)


def test_limits_are_what_the_container_sees(docker: Dockerd, runtime: Runtime) -> None:
    """--memory, --pids-limit, --cpus, --cpuset-cpus; in a VM /proc/meminfo and nproc follow them."""
    script = """
    cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes
    cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max
    cut -d ' ' -f 1 /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us
    nproc
    grep MemTotal /proc/meminfo | awk '{print $2}'
    """
    result = docker.run(
        *("--memory", "200m", "--pids-limit", "77", "--cpus", "0.75", "--cpuset-cpus", "0", IMAGE, "sh", "-c", script)
    )
    lines = result.expect(0).text.splitlines()
    assert lines[:4] == [str(200 << 20), "77", "75000", "1"]
    if runtime.is_vm:
        largest = 1 << 20 if has_capability("hotplug_memory") else 2 << 20
        assert 200 * 1024 * 0.8 < int(lines[4]) < largest, "sized after the limit, plus some"


def test_memory_beyond_the_limit_is_oom_killed(docker: Dockerd, read_by_containerd: None) -> None:
    """137, and inspect says OOMKilled."""
    docker.detached("--name", "hungry", "--memory", "64m", "--memory-swap", "64m", IMAGE, "tail", "/dev/zero")
    assert docker.ok("wait", "hungry") == "137"
    assert docker.inspect("hungry")["State"]["OOMKilled"] is True


def test_a_container_that_ends_by_it_at_once_is_oom_killed(docker: Dockerd, read_by_containerd: None) -> None:
    """The kill is shown before the end, each time."""
    for number in range(4):
        name = f"greedy-{number}"
        argv = ("run", "--name", name, "--memory", "40m", IMAGE, "dd", "if=/dev/zero", "of=/dev/null", "bs=90M")
        result = docker.call(*argv)
        assert (result.code, docker.inspect(name)["State"]["OOMKilled"]) == (137, True)


def test_many_processes_are_refused(docker: Dockerd) -> None:
    """--pids-limit holds."""
    result = docker.run("--pids-limit", "20", IMAGE, "sh", "-c", "for n in $(seq 30); do sleep 3 & done; echo all")
    assert b"can't fork" in result.stderr


def test_the_other_limits(docker: Dockerd, runtime: Runtime) -> None:
    """Soft and swap limit, period and quota, shares, CPUs and nodes: in its cgroup, or (shares, CPUs) around it."""
    flags = ("--memory", "128m", "--memory-reservation", "100m", "--memory-swap", "192m", "--cpu-period", "50000",
             "--cpu-quota", "25000", "--cpu-shares", str(CPU_SHARES), "--cpuset-cpus", "0", "--cpuset-mems", "0",
             "--ulimit", "nproc=77:99", "--ulimit", "core=0", "--memory-swappiness", "10", "--oom-kill-disable",
             "--kernel-memory", "120m", "--cgroup-parent", os.path.dirname(docker.cgroup_parent))  # fmt: skip
    script = "; ".join(
        (
            shown("memory.low", "memory/memory.soft_limit_in_bytes"),
            shown("memory.swap.max", "memory/memory.memsw.limit_in_bytes"),
            shown("cpu.max", "cpu/cpu.cfs_quota_us"),
            shown("cpu.weight", "cpu/cpu.shares"),
            "grep -E '^(Cpus|Mems)_allowed_list' /proc/self/status; grep processes /proc/self/limits; sleep 1000",
        )
    )
    docker.detached("--name", "limited", *flags, IMAGE, "sh", "-c", script)
    lines = docker.wait_log("limited", "processes").splitlines()
    assert lines[0] == str(100 << 20)
    # version 1 counts memory and swap together
    assert lines[1] == str((64 if runtime.is_vm else 192) << 20)
    assert lines[2] in ("25000 50000", "25000")
    assert lines[3] == str(CPU_WEIGHT if runtime.is_vm else CPU_SHARES)
    # a kernel for one CPU has neither cpusets nor nodes
    assert [line.split()[1] for line in lines[4:-1]] == (["0", "0"] if has_capability("hotplug_cpu") else ["0"])
    assert lines[-1].split()[2:4] == ["77", "99"]
    pid = docker.inspect("limited")["State"]["Pid"]
    parent = os.path.dirname(docker.cgroup_parent)
    assert host_group(pid, "memory").endswith(f"{parent}/{docker.inspect('limited')['Id']}")
    assert host_value(pid, "cpuset", "cpuset.cpus") == "0"
    assert host_value(pid, "cpu", "cpu.weight", "cpu.shares") in (str(CPU_SHARES), str(CPU_WEIGHT))


def host_group(pid: int, controller: str) -> str:
    """The directory of a process's cgroup for a controller."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        paths = {names: path for _, names, path in (line.strip().split(":", 2) for line in file)}
    if os.path.exists(f"{GROUPS}/cgroup.controllers"):
        return GROUPS + paths[""]
    return f"{GROUPS}/{controller}{paths[controller]}"


def host_value(pid: int, controller: str, *names: str) -> str:
    """What the first of those files says that is there."""
    directory = host_group(pid, controller)
    path = next(f"{directory}/{name}" for name in names if os.path.exists(f"{directory}/{name}"))
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def test_block_io_is_throttled(docker: Dockerd) -> None:
    """--device-*-bps and -iops of the disk below the images: 8 MiB at 2 MiB/s take their time; weights are taken."""
    device = disk_of(docker.directory)
    flags = ("--device-write-bps", f"{device}:2mb", "--device-read-bps", f"{device}:3mb", "--blkio-weight", "300",
             "--device-write-iops", f"{device}:5000", "--device-read-iops", f"{device}:6000")  # fmt: skip
    script = "dd if=/dev/zero of=/file bs=1M count=8 conv=fsync 2>/dev/null; echo written; sleep 1000"
    docker.detached("--name", "throttled", *flags, IMAGE, "sh", "-c", script)
    begun = time.monotonic()
    docker.wait_log("throttled", "written", timeout=120)
    assert time.monotonic() - begun > 2.5
    pid = docker.inspect("throttled")["State"]["Pid"]
    if os.path.exists(f"{GROUPS}/cgroup.controllers"):
        assert "rbps=3145728 wbps=2097152 riops=6000 wiops=5000" in host_value(pid, "blkio", "io.max")
    else:
        limits = {name: host_value(pid, "blkio", f"blkio.throttle.{name}_device").split()[1]
                  for name in ("read_bps", "write_bps", "read_iops", "write_iops")}  # fmt: skip
        assert limits == {"read_bps": "3145728", "write_bps": "2097152", "read_iops": "6000", "write_iops": "5000"}


def disk_of(path: str) -> str:
    """The block device, of a partition the whole disk, that *path* lies on; skips where it lies on none."""
    number = os.stat(path).st_dev
    try:
        entry = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}", strict=True)
    except OSError:
        pytest.skip(f"{path} lies on no block device")
    if os.path.exists(f"{entry}/partition"):
        entry = os.path.dirname(entry)
    return f"/dev/{os.path.basename(entry)}"


@pytest.fixture
def small(docker: Dockerd) -> Iterator[str]:
    """A container with little of everything."""
    docker.detached("--name", "small", "--memory", "96m", "--cpus", "0.5", "--pids-limit", "50", IMAGE, "sleep", "9999")
    yield "small"


def test_update_within_and_beyond_the_virtual_machine(docker: Dockerd, runtime: Runtime, small: str) -> None:
    """Every option of `docker update`, first less, then more than the VM started with: then it has more of it."""
    docker.ok(
        *("update", "--memory", "80m", "--memory-swap", "100m", "--memory-reservation", "40m", "--pids-limit", "33"),
        *("--cpu-shares", str(CPU_SHARES), "--cpuset-cpus", "0", "--cpuset-mems", "0", "--blkio-weight", "300", small),
    )
    script = "; ".join(
        (
            shown("memory.max", "memory/memory.limit_in_bytes"),
            shown("memory.swap.max", "memory/memory.memsw.limit_in_bytes"),
            shown("memory.low", "memory/memory.soft_limit_in_bytes"),
            shown("pids.max", "pids/pids.max"),
            shown("cpu.weight", "cpu/cpu.shares"),
            "nproc",
        )
    )
    lines = docker.ok("exec", small, "sh", "-c", script).splitlines()
    swap, weight = (20, CPU_WEIGHT) if runtime.is_vm else (100, CPU_SHARES)
    assert lines == [str(number) for number in (80 << 20, swap << 20, 40 << 20, 33, weight, 1)]
    assert host_value(docker.inspect(small)["State"]["Pid"], "cpuset", "cpuset.cpus") == "0"

    count = cpus()
    docker.ok("update", "--memory", "1200m", "--memory-swap", "1200m", "--cpus", str(count), small)
    docker.ok("update", "--cpuset-cpus", f"0-{count - 1}" if count > 1 else "0", small)
    assert docker.ok("exec", small, "nproc") == str(count)
    if runtime.is_vm:
        wait_until(lambda: mem_total(docker, small) > 1100, timeout=60, what="the memory", interval=0.5)
    grown = docker.call("exec", small, "dd", "if=/dev/zero", "of=/dev/null", "bs=550M", "count=1", timeout=120)
    assert grown.code == 0, grown.describe()


def cpus() -> int:
    """How many a container without limits has: two at most, one where a VM can't have more."""
    return min(2, len(os.sched_getaffinity(0))) if has_capability("hotplug_cpu") else 1


def mem_total(docker: Dockerd, name: str) -> int:
    """MiB in /proc/meminfo."""
    return int(docker.ok("exec", name, "awk", "/MemTotal/ {print $2}", "/proc/meminfo")) // 1024


@pytest.mark.only("runvm", "a virtual machine has a size")
def test_memory_is_there_from_the_first_moment(docker: Dockerd) -> None:
    """A limit beyond what every VM starts with is there before the program starts; without a limit it is a GiB, or two
    where it can't grow."""
    script = "awk '/MemTotal/ {print $2}' /proc/meminfo; nproc"
    total, count = docker.run("--memory", "1500m", "--cpus", "0.5", IMAGE, "sh", "-c", script).expect(0).text.split()
    assert int(total) > 1450 * 1024
    assert count == "1"
    total, count = docker.run(IMAGE, "sh", "-c", script).expect(0).text.split()
    gib = 1 if has_capability("hotplug_memory") else 2
    assert 0.9 * (gib << 20) < int(total) <= gib << 20
    assert int(count) == cpus()


@pytest.mark.only("runvm", "a virtual machine's processors are threads of the host")
def test_real_time_processors_are_refused(docker: Dockerd) -> None:
    """--cpu-rt-runtime: 125 and why, at once."""
    result = docker.run("--cpu-rt-runtime", "1000", IMAGE, "true")
    assert result.code == 125
    assert b"real-time" in result.stderr
