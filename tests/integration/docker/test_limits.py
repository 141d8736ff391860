"""Limits by docker run, as the container sees them and as they are enforced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.docker import IMAGE

if TYPE_CHECKING:
    from framework.docker import Dockerd
    from framework.runtime import Runtime


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
        assert 200 * 1024 * 0.8 < int(lines[4]) < 1 << 20, "sized after the limit, plus some"


def test_memory_beyond_the_limit_is_oom_killed(docker: Dockerd) -> None:
    """137, and inspect says OOMKilled."""
    docker.detached("--name", "hungry", "--memory", "64m", "--memory-swap", "64m", IMAGE, "tail", "/dev/zero")
    assert docker.ok("wait", "hungry") == "137"
    assert docker.inspect("hungry")["State"]["OOMKilled"] is True


def test_many_processes_are_refused(docker: Dockerd) -> None:
    """--pids-limit holds."""
    result = docker.run("--pids-limit", "20", IMAGE, "sh", "-c", "for n in $(seq 30); do sleep 3 & done; echo all")
    assert b"can't fork" in result.stderr
