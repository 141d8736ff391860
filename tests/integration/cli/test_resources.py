"""Limits, pause and resume, update, events, ps: the container's resources and how they are looked at."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from framework import host as books
from framework import process
from framework.bundle import CGROUP_PARENT
from framework.process import wait_until
from framework.runtime import facts

if TYPE_CHECKING:
    from framework.runtime import Box, Container, Runtime

MIB = 1 << 20


def limited(container: Container) -> Container:
    """The same container with limits of every kind."""
    container.bundle.namespace("cgroup")
    container.bundle.resources.update(
        {
            "memory": {"limit": 128 * MIB},
            "pids": {"limit": 40},
            "cpu": {"quota": 50000, "period": 100000, "shares": 512, "cpus": "0"},
        }
    )
    return container


def test_limits_are_in_the_containers_cgroup(box: Box, runtime: Runtime) -> None:
    """memory, pids, cpu quota, shares and cpus as the container reads them: by v2 in a VM, by the host's else."""
    seen = facts(
        limited(box()),
        {
            "memory": "cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
            "pids": "cat /sys/fs/cgroup/pids.max || cat /sys/fs/cgroup/pids/pids.max",
            "cpu": "cat /sys/fs/cgroup/cpu.max || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us",
            "shares": "cat /sys/fs/cgroup/cpu.weight || cat /sys/fs/cgroup/cpu/cpu.shares",
            "cpus": "grep Cpus_allowed_list /proc/self/status; nproc",
            "write": "mkdir /sys/fs/cgroup/mine /sys/fs/cgroup/pids/mine",
            "own": "cat /proc/self/cgroup",
        },
    )
    assert seen["memory"].splitlines()[-1] == str(128 * MIB)
    assert seen["pids"].splitlines()[-1] == "40"
    assert seen["cpu"].splitlines()[-1].split()[0] == "50000"
    assert seen["shares"].splitlines()[-1] == ("59" if runtime.is_vm else "512")
    assert seen["cpus"].splitlines() == ["Cpus_allowed_list:\t0", "1"]
    assert "Read-only file system" in seen["write"]
    if runtime.is_vm:
        assert seen["own"] == "0::/", "cgroup v2, and its own is the root"


def test_memory_beyond_the_limit_ends_the_process(box: Box) -> None:
    """A process that takes more than linux.resources.memory.limit is killed: 137; a shell above it goes on, also where
    both are the kernel's first choice."""
    container = box.sh("tail /dev/zero; echo code $?; sleep 2; echo on")
    container.bundle.resources["memory"] = {"limit": 64 * MIB}
    container.bundle.config["process"]["oomScoreAdj"] = 1000
    result = container.run()
    assert b"code 137\non\n" in result.stdout, result.describe()


def test_processes_beyond_the_limit_fail(box: Box) -> None:
    """linux.resources.pids.limit: fork fails past it."""
    container = box.sh("for n in $(seq 30); do sleep 5 & done; echo all")
    container.bundle.resources["pids"] = {"limit": 20}
    result = container.run()
    assert b"can't fork" in result.stderr, result.describe()


@pytest.fixture(scope="module")
def running(module_box: Box) -> Container:
    """A running container with limits that counts in /tmp/count."""
    container = limited(module_box.sh("trap 'exit 0' TERM; while :; do echo >>/tmp/count; sleep 0.05; done"))
    return container.launch()


def count(container: Container) -> int:
    """How far the container has counted, read on the host."""
    try:
        return os.stat(f"{container.bundle.rootfs}/tmp/count").st_size
    except FileNotFoundError:
        return 0


def test_pause_stops_all_processes_and_resume_goes_on(running: Container, runtime: Runtime) -> None:
    """Paused: the state says so, nothing runs, exec and a second pause are refused; kill and resume work."""
    wait_until(lambda: count(running) > 0, timeout=20, what="the first count")
    runtime.ok("pause", running.id)
    assert running.status == "paused"
    at = count(running)
    time.sleep(0.5)
    assert count(running) == at
    execed = running.exec("true")
    assert execed.code == 255
    assert "cannot exec in a paused container" in execed.error
    again = runtime.call("pause", running.id)
    assert again.code == 1
    assert "container not running" in again.error or "paused" in again.error
    assert runtime.call("delete", running.id).code == 1
    assert runtime.call("start", running.id).error == "cannot start a container in the paused state"
    runtime.ok("resume", running.id)
    assert running.status == "running"
    wait_until(lambda: count(running) > at, timeout=10, what="counting on")


def test_an_exec_that_ignores_the_pause_runs_once_resumed(running: Container, runtime: Runtime) -> None:
    """--ignore-paused: it waits, and its output and code come when the container goes on."""
    runtime.ok("pause", running.id)
    command = runtime.start("exec", "--ignore-paused", running.id, "sh", "-c", "echo ran; exit 5")
    time.sleep(1)
    assert command.popen.poll() is None
    runtime.ok("resume", running.id)
    result = command.wait(runtime.timeout)
    assert (result.code, result.stdout) == (5, b"ran\n")
    assert runtime.call("resume", running.id).error == "container not paused"


def test_update_changes_limits_while_it_runs(running: Container, runtime: Runtime) -> None:
    """By flags, by JSON on stdin (containerd) and by a file (podman); what isn't named stays."""
    read = {
        "memory": "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
        "pids": "cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max",
        "cpu": "cut -d ' ' -f 1 /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    }

    def limits() -> tuple[int, int, int]:
        memory, pids, cpu = (int(running.sh(command)) for command in read.values())
        return memory // MIB, pids, cpu

    assert limits() == (128, 40, 50000)
    runtime.ok("update", "--memory", str(96 * MIB), "--pids-limit", "50", running.id)
    assert limits() == (96, 50, 50000)
    resources = json.dumps({"memory": {"limit": 100 * MIB}, "cpu": {"quota": 70000, "period": 100000}})
    runtime.ok("update", "--resources", "-", running.id, stdin=resources.encode())
    assert limits() == (100, 50, 70000)
    path = f"{running.bundle.path}/resources.json"
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"pids": {"limit": 60}}, file)
    runtime.ok("update", f"--resources={path}", running.id)
    assert limits()[1:] == (60, 70000)
    bad = runtime.call("update", "--resources", "-", running.id, stdin=b"{nonsense")
    assert bad.code == 1


def test_update_of_a_quota_or_a_period_alone_keeps_the_other(box: Box, runtime: Runtime) -> None:
    """By flags and by JSON, in the guest and around it; -1 ends the quota and keeps the period."""
    container = box.idle()
    container.bundle.namespace("cgroup")
    container.bundle.resources["cpu"] = {"quota": 50000, "period": 50000}
    container.launch()
    names = ("quota", "period")

    def limits() -> list[str]:
        files = " ".join(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us" for name in names)
        return container.sh(f"cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat {files}").split()

    runtime.ok("update", "--cpu-quota", "25000", container.id)
    assert limits() == ["25000", "50000"]
    runtime.ok("update", "--cpu-period", "100000", container.id)
    assert limits() == ["25000", "100000"]
    text = json.dumps({"cpu": {"quota": 40000}})
    runtime.ok("update", "--resources", "-", container.id, stdin=text.encode())
    assert limits() == ["40000", "100000"]
    runtime.ok("update", "--resources", "-", container.id, stdin=b'{"cpu": {"period": 200000}}')
    assert limits() == ["40000", "200000"]
    if runtime.is_vm and not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        around = "/sys/fs/cgroup/cpu" + books.cgroups_of(container.init_pid)["cpu"]
        with open(f"{around}/cpu.cfs_quota_us") as quota, open(f"{around}/cpu.cfs_period_us") as period:
            assert (int(quota.read()), int(period.read())) == (40000 + (40000 + 200000) // 20, 200000)
    runtime.ok("update", "--cpu-quota", "-1", container.id)
    assert limits()[0] in ("max", "-1")
    assert limits()[1] == "200000"


def test_events_stats_has_the_containers_figures(running: Container, runtime: Runtime) -> None:
    """`events --stats`: one JSON record with cpu, memory and pids in runc's shape, real figures of the container."""
    record = runtime.ok("events", "--stats", running.id).json()
    assert record["type"] == "stats"
    assert record["id"] == running.id
    data = record["data"]
    assert data["cpu"]["usage"]["total"] > 0
    assert 0 < data["memory"]["usage"]["usage"] < 128 * MIB
    assert data["memory"]["usage"]["limit"] in (96 * MIB, 100 * MIB, 128 * MIB)
    assert 1 <= data["pids"]["current"] <= 10
    assert data["pids"]["limit"] in (40, 50, 60)
    assert data["cpuset"]["mem_hardwall"] == data["cpuset"]["sched_load_balance"] == 0 or not runtime.is_vm
    assert set(data["blkio"]) <= {"ioServiceBytesRecursive", "ioServicedRecursive", "psi"} or not runtime.is_vm
    if runtime.is_vm:
        machine = data["vm"]
        assert set(machine["processes"]) == {"vmm", "virtiofsd", "supervisor"}
        assert all(process["cpu"] >= 0 and process["memory"] > 1 << 20 for process in machine["processes"].values())
        assert machine["memory"]["total"] > machine["memory"]["overhead"] > 32 * MIB
        assert machine["cpu"]["total"] > 0
    # The interval form writes on until its caller ends it
    watching = runtime.start("events", "--interval", "1s", running.id)
    assert watching.popen.stdout is not None
    first = json.loads(watching.popen.stdout.readline())
    assert first["type"] == "stats"
    watching.kill()


def test_ps_shows_the_containers_processes(running: Container, runtime: Runtime) -> None:
    """The table has the host's `ps` columns and takes its options; JSON is a list of host pids with init's."""
    pids = runtime.ok("ps", "--format", "json", running.id).json()
    assert running.init_pid in pids
    table = runtime.ok("ps", running.id, "-o", "pid,args").text.splitlines()
    assert table[0].split() == ["PID", "COMMAND"]
    assert any("/tmp/count" in line and line.split()[0] == str(running.init_pid) for line in table[1:])


def test_the_pid_is_in_the_hosts_cgroup_with_the_limits(running: Container, runtime: Runtime) -> None:
    """Engines read stats and OOM in the host cgroup of the pid, at cgroupsPath; it is gone after delete."""
    paths = books.cgroups_of(running.init_pid)
    assert paths["memory"] == running.bundle.linux["cgroupsPath"]
    directory = f"/sys/fs/cgroup/pids{paths['pids']}"
    with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
        assert running.init_pid in [int(line) for line in file]
    if runtime.is_vm:
        vmms = [pid for pid in process.descendants(os.getpid()) if "qemu" in process.command_line(pid).split(" ", 1)[0]]
        assert any(books.cgroups_of(pid)["memory"].startswith(paths["memory"]) for pid in vmms), "the VMM is accounted"


def test_limits_of_block_devices_are_in_the_hosts_cgroup(box: Box, runtime: Runtime) -> None:
    """The host's processes read and write a container's files, so what throttles them is the host's cgroup."""
    if not os.path.isdir("/sys/fs/cgroup/blkio"):
        pytest.skip("the host has no cgroup of version 1 for block devices")
    disk = f"/sys/dev/block/{os.major(os.stat(runtime.scratch).st_dev)}:{os.minor(os.stat(runtime.scratch).st_dev)}"
    if not os.path.exists(disk):
        pytest.skip(f"{runtime.scratch} isn't on a disk")
    with open(f"{disk}/../dev" if os.path.exists(f"{disk}/partition") else f"{disk}/dev", encoding="ascii") as file:
        major, minor = file.read().strip().split(":")
    throttled = {"major": int(major), "minor": int(minor), "rate": 12345678}
    container = box.idle()
    container.bundle.resources["blockIO"] = {"throttleReadBpsDevice": [throttled]}
    container.create()
    directory = f"/sys/fs/cgroup/blkio{books.cgroups_of(container.init_pid)['blkio']}"

    def limit(name: str) -> list[str]:
        with open(f"{directory}/blkio.throttle.{name}_device", encoding="ascii") as file:
            return file.read().split()

    assert limit("read_bps") == [f"{major}:{minor}", "12345678"]
    assert limit("write_iops") == []
    missing = box.idle()
    missing.bundle.resources["blockIO"] = {"throttleWriteIOPSDevice": [{**throttled, "major": 4000}]}
    refused = missing.try_create()
    assert refused.code == 1
    assert "blkio.throttle.write_iops_device" in refused.error
    assert missing.id not in runtime.ids()


def test_a_bad_cgroups_path_is_refused_or_confined(box: Box, runtime: Runtime) -> None:
    """A cgroupsPath with dots can't leave the cgroup file system."""
    container = box("true")
    container.bundle.linux["cgroupsPath"] = f"/../../../..{CGROUP_PARENT}/{container.id}"
    container.run()
    assert not os.path.exists(CGROUP_PARENT)
    assert container.id not in runtime.ids()


def test_systemd_cgroup_without_systemd_is_a_clear_error(box: Box, runtime: Runtime) -> None:
    """--systemd-cgroup on a host that isn't run by systemd: said so, and nothing left."""
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs here")
    container = box("true")
    container.bundle.linux["cgroupsPath"] = f"system.slice:rvt:{container.id}"
    container.bundle.save()
    command = [
        runtime.path,
        "--root",
        runtime.root,
        "--systemd-cgroup",
        "create",
        "-b",
        container.bundle.path,
        container.id,
    ]
    result = process.call(command, timeout=runtime.timeout)
    assert result.code == 1
    assert b"systemd" in result.stderr
    assert container.id not in runtime.ids()


@pytest.mark.capability("hotplug_memory", "its memory is fixed at its start")
@pytest.mark.only("runvm", "the machine that grows is the virtual one")
def test_the_virtual_machine_grows_to_its_limits(box: Box, runtime: Runtime) -> None:
    """Beyond what it started with: a container without a limit, and after an update one with a larger."""

    def total(container: Container) -> int:
        return int(container.sh("awk '/MemTotal/ {print $2}' /proc/meminfo")) // 1024

    free = box.idle()
    free.launch()
    wait_until(lambda: 800 < total(free) <= 1024, timeout=20, what="a GiB without a limit")
    assert free.sh("dd if=/dev/zero of=/dev/null bs=600M count=1 2>&1 | grep -c records").strip() == "2"
    small = box.idle()
    small.bundle.resources["memory"] = {"limit": 64 * MIB}
    small.launch()
    assert total(small) < 640
    runtime.ok("update", "--memory", str(2048 * MIB), small.id)
    wait_until(lambda: total(small) > 1800, timeout=30, what="two GiB after the update")


FAKE_BUSCTL = """#!/bin/sh
while [ $# -gt 1 ]; do
  [ "$1" = StartTransientUnit ] && scope=$3
  [ "$1" = PIDs ] && pid=$4
  shift
done
for top in /sys/fs/cgroup/systemd /sys/fs/cgroup; do
  [ -e $top/cgroup.procs ] || continue
  mkdir -p $top/PARENT/$scope && echo $pid >$top/PARENT/$scope/cgroup.procs
  exit
done
"""


@pytest.mark.only("runvm", "others speak D-Bus themselves")
def test_a_scope_of_systemds_holds_the_container(box: Box, runtime: Runtime) -> None:
    """--systemd-cgroup where systemd runs: the pid is in the scope that systemd was asked for; delete leaves nothing.

    A stand-in for busctl makes the scope, in a mount namespace where systemd seems to run: none does on this host.
    """
    container = box.idle()
    programs = f"{container.bundle.path}/bin"
    os.makedirs(programs)
    with open(f"{programs}/busctl", "w", encoding="utf-8") as file:
        file.write(FAKE_BUSCTL.replace("PARENT", CGROUP_PARENT.strip("/")))
    os.chmod(f"{programs}/busctl", 0o755)
    container.bundle.linux["cgroupsPath"] = f"system.slice:rvt:{container.id}"
    container.bundle.save()
    script = 'mkdir -p /run/systemd && mount -t tmpfs t /run/systemd && mkdir /run/systemd/system && exec "$@"'
    flags = ["--systemd-cgroup", "create", "-b", container.bundle.path, "--pid-file", container.pid_file]
    command = [runtime.path, "--root", runtime.root, *flags, container.id]
    with open(f"{container.bundle.path}/said", "w+b") as said:
        created = process.Process(
            ["unshare", "--mount", "sh", "-c", script, "sh", *command],
            env={"PATH": f"{programs}:{os.environ['PATH']}"},
            stdout=said,
            stderr=said,
        ).wait(runtime.timeout)
        said.seek(0)
        assert created.code == 0, said.read()
    scope = f"{CGROUP_PARENT}/rvt-{container.id}.scope"
    hierarchy = "name=systemd" if os.path.isdir("/sys/fs/cgroup/systemd") else ""
    assert books.cgroups_of(container.read_pid_file())[hierarchy] == scope
    container.delete("--force")
    process.reap_orphans()
    assert not [path for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith(scope)]


def test_a_memory_limit_below_what_is_in_use_is_refused(box: Box, runtime: Runtime) -> None:
    """update fails in the kernel's place, and nothing is killed for it."""
    container = box.idle()
    container.bundle.resources["memory"] = {"limit": 128 * MIB}
    container.launch()
    result = runtime.call("update", "--memory", "16k", container.id)
    assert result.code == 1
    assert "unable to set memory limit to 16384 (current usage: " in result.error
    assert container.status == "running"


@pytest.mark.differs("runc", "1.1 warns of it only")
@pytest.mark.differs("crun", "it takes any")
def test_a_cgroup_that_others_are_in_is_refused(box: Box, runtime: Runtime) -> None:
    """By runc's message, before anything is made, and nothing happens to them."""
    container = box("true")
    directories = [f"{root}{container.bundle.linux['cgroupsPath']}" for root in hierarchies("devices")]
    other = process.Process(["sleep", "1000"])
    for directory in directories:
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(other.popen.pid))
    result = container.run()
    assert result.code == 1
    assert "container's cgroup is not empty: 1 process(es) found" in result.error
    assert container.id not in runtime.ids()
    assert process.alive(other.popen.pid)
    other.kill()
    other.wait(10)
    assert container.run().code == 0


@pytest.mark.differs("crun", "it hangs")
def test_a_frozen_cgroup_is_refused(box: Box, runtime: Runtime) -> None:
    """By runc's message: the container's processes would hang in it."""
    container = box("true")
    (root,) = hierarchies("freezer")
    directory = f"{root}{container.bundle.linux['cgroupsPath']}"
    os.makedirs(directory, exist_ok=True)
    name, frozen, thawed = ("cgroup.freeze", "1", "0")
    if os.path.exists(f"{directory}/freezer.state"):
        name, frozen, thawed = ("freezer.state", "FROZEN", "THAWED")
    for state in (frozen, thawed):
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/{name}", "w", encoding="ascii") as file:
            file.write(state)
        result = container.run()
        if state == frozen:
            assert result.code == 1
            assert "container's cgroup unexpectedly frozen" in result.error
            assert container.id not in runtime.ids()
        else:
            assert result.code == 0


def hierarchies(controller: str) -> list[str]:
    """Where the host has the cgroups of a controller: that of version 1, else the one of version 2."""
    path = f"/sys/fs/cgroup/{controller}"
    return [path] if os.path.isdir(path) else ["/sys/fs/cgroup"]
