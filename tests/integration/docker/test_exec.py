"""docker exec in all its forms, and the commands that look into a running container."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.docker import IMAGE
from framework.process import wait_until
from framework.terminal import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.docker import Dockerd

NAME = "looked-into"


@pytest.fixture(scope="module", autouse=True)
def running(docker: Dockerd) -> Iterator[None]:
    """A container that these tests share."""
    docker.detached(
        "--name", NAME, "--memory", "256m", IMAGE, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"
    )
    yield
    docker.ok("rm", "--force", NAME)


def test_exec_passes_streams_and_codes(docker: Dockerd) -> None:
    """Exit codes, stdout and stderr apart, stdin with -i to its end; 126 and 127 as docker has them."""
    result = docker.call("exec", NAME, "sh", "-c", "echo out; echo err >&2; exit 21")
    assert (result.code, result.stdout, result.stderr) == (21, b"out\n", b"err\n")
    data = bytes(range(256)) * 1024
    assert docker.call("exec", "--interactive", NAME, "cat", stdin=data).stdout == data
    assert docker.call("exec", NAME, "no-such-program").code in (126, 127)
    assert docker.call("exec", NAME, "/etc/passwd").code == 126


def test_exec_takes_environment_directory_and_user(docker: Dockerd, tmp_path: os.PathLike[str]) -> None:
    """-e, --env-file, -w, -u."""
    file = os.path.join(tmp_path, "env")
    with open(file, "w", encoding="utf-8") as out:
        out.write("FILED=too\n")
    flags = ("--env", "A=b c", "--env-file", file, "--workdir", "/home", "--user", "1000:1000")
    shown = docker.ok("exec", *flags, NAME, "sh", "-c", 'echo "$A $FILED"; pwd; id -u; id -g').splitlines()
    assert shown == ["b c too", "/home", "1000", "1000"]


def test_exec_privileged_has_all_capabilities(docker: Dockerd, grants_all: None) -> None:
    """`exec --privileged`: what the container's own process doesn't have."""
    capabilities = docker.ok("exec", "--privileged", NAME, "grep", "CapEff", "/proc/self/status").split()[1]
    assert bin(int(capabilities, 16)).count("1") > 35


def test_exec_detached_runs_on(docker: Dockerd) -> None:
    """-d returns at once; the process does its work."""
    docker.ok("exec", "--detach", NAME, "sh", "-c", "sleep 0.3; touch /tmp/detached")
    wait_until(lambda: docker.call("exec", NAME, "test", "-e", "/tmp/detached").code == 0, timeout=20, what="the file")


def test_exec_at_a_terminal(docker: Dockerd) -> None:
    """-it: a terminal with the caller's size, and ctrl-D ends the shell."""
    session = Session(docker.argv("exec", "-it", "--env", "PS1=$ ", NAME, "sh"), rows=41, columns=99)
    try:
        session.terminal.expect(b"$ ", timeout=docker.runtime.timeout)
        session.terminal.send(b'sh -c \'while [ "$(stty size)" != "41 99" ]; do sleep 0.1; done; echo si""zed\'\n')
        session.terminal.expect(b"sized\r\n")
        session.terminal.expect(b"$ ")  # not before the shell reads: typed ahead, ctrl-D gets lost
        session.terminal.send(b"\x04")
        assert session.wait(30) == 0
    finally:
        session.close()


def test_many_execs_at_once(docker: Dockerd) -> None:
    """Eight at once, each with its output and code."""
    clients = [docker.start_client("exec", NAME, "sh", "-c", f"echo {number}; exit {number}") for number in range(8)]
    for number, client in enumerate(clients):
        result = client.wait(60)
        assert (result.code, result.text) == (number, str(number))


@pytest.mark.parametrize("victim", ["container", "vmm"])
def test_execs_return_when_their_container_is_killed(docker: Dockerd, victim: str) -> None:
    """dockerd forgets an exec whose end it hears of after the container's: its client would wait for ever."""
    for _ in range(2):
        docker.detached("--name", "killed", IMAGE, "sleep", "1000")
        processes = docker.processes("killed")
        clients = [docker.start_client("exec", "killed", "sh", "-c", "while :; do echo; done") for _ in range(4)]
        for client in clients:
            assert client.popen.stdout is not None
            assert client.popen.stdout.readline()
        if victim == "vmm":
            os.kill(processes.get("vmm", processes["init"]), signal.SIGKILL)
        else:
            docker.ok("kill", "killed")
        for client in clients:
            client.wait(30)
        docker.ok("rm", "--force", "killed")


def test_top_shows_the_containers_command(docker: Dockerd) -> None:
    """`docker top`: the host's ps of the host pids that the runtime's `ps` gave; with its own options too."""
    table = docker.ok("top", NAME).splitlines()
    assert table[0].split()[:2] == ["UID", "PID"]
    assert any("sh -c trap" in line for line in table[1:])
    pid = str(docker.inspect(NAME)["State"]["Pid"])
    assert pid in docker.ok("top", NAME, "-o", "pid,args")


def test_stats_has_figures(docker: Dockerd, read_by_containerd: None) -> None:
    """`docker stats --no-stream`: some memory in use, and some processes."""
    line = docker.ok("stats", "--no-stream", "--format", "{{json .}}", NAME)
    figures = json.loads(line)
    assert not figures["MemUsage"].startswith("0B")
    assert int(figures["PIDs"]) >= 1


@pytest.mark.differs("runvm", "the host's cgroup, which docker stats reads, holds the whole VM and its overhead")
def test_stats_has_the_containers_limit(docker: Dockerd) -> None:
    """The limit that was asked for."""
    assert docker.ok("stats", "--no-stream", "--format", "{{.MemUsage}}", NAME).endswith(" / 256MiB")


def test_pause_and_unpause(docker: Dockerd) -> None:
    """Paused in inspect, exec is refused, unpause goes on."""
    docker.ok("pause", NAME)
    assert docker.inspect(NAME)["State"]["Status"] == "paused"
    assert docker.call("exec", NAME, "true").code == 1
    docker.ok("unpause", NAME)
    docker.ok("exec", NAME, "true")


def test_update_changes_the_limits(docker: Dockerd) -> None:
    """`docker update --memory --cpus --pids-limit`: in inspect and in the container's cgroup."""
    docker.ok("update", "--memory", "192m", "--memory-swap", "192m", "--pids-limit", "99", "--cpus", "0.5", NAME)
    assert docker.inspect(NAME)["HostConfig"]["Memory"] == 192 << 20
    script = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert docker.ok("exec", NAME, "sh", "-c", script) == str(192 << 20)
    script = "cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max"
    assert docker.ok("exec", NAME, "sh", "-c", script) == "99"


def test_the_pid_that_inspect_tells_is_the_containers(docker: Dockerd) -> None:
    """State.Pid is alive, a child of containerd's shim, in namespaces of its own."""
    pid = docker.inspect(NAME)["State"]["Pid"]
    assert process.alive(pid)
    assert "containerd-shim" in process.command_line(process.parent(pid))


def test_exec_returns_though_its_process_leaves_one_behind(docker: Dockerd) -> None:
    """What that goes on writing holds up nobody, and doesn't end it."""
    script = "(while :; do echo more; sleep 0.2; done; echo ended >/ended) & echo begun"
    result = docker.call("exec", NAME, "sh", "-c", script, timeout=30)
    assert result.code == 0
    assert b"begun\n" in result.stdout
    docker.ok("exec", NAME, "sh", "-c", "test ! -e /ended")
