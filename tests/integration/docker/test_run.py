"""docker run, start, stop, kill, restart, wait, logs, attach: the life of a container as Docker's users have it."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from framework import host, process, rootfs
from framework.docker import IMAGE, RUNTIME
from framework.engine import use_terminal
from framework.process import wait_until
from framework.terminal import Session

if TYPE_CHECKING:
    from framework.docker import Dockerd
    from framework.runtime import Runtime


def test_run_prints_the_containers_id_as_hostname(
    docker: Dockerd, runtime: Runtime, tmp_path: os.PathLike[str]
) -> None:
    """`docker run --rm --runtime=… busybox hostname` prints the id; the kernel is the guest's."""
    cidfile = os.path.join(tmp_path, "cid")
    result = docker.run(
        "--runtime", RUNTIME, "--cidfile", cidfile, IMAGE, "sh", "-c", f"hostname; cat {host.BOOT_ID}; id -u"
    )
    assert result.code == 0, result.describe()
    hostname, booted, uid = result.text.splitlines()
    with open(cidfile, encoding="ascii") as file:
        assert hostname == file.read()[:12]
    assert uid == "0"
    assert (booted != host.boot_id()) == runtime.is_vm
    assert result.stderr == b""


def test_exit_codes_are_dockers(docker: Dockerd) -> None:
    """The program's own code; 127 for a missing one, 126 for one that can't be run, 125 for the daemon's refusal."""
    assert docker.run(IMAGE, "sh", "-c", "exit 3").code == 3
    for argv, code in (
        (["no-such-program"], 127),
        (["/no/such/path"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ):
        result = docker.run(IMAGE, *argv)
        assert result.code == code, result.describe()
    assert docker.run("--network", "no-such-network", IMAGE, "true").code == 125
    assert docker.run("--runtime", "no-such-runtime", IMAGE, "true").code == 125


def test_input_and_output_pass_by_pipes(docker: Dockerd) -> None:
    """`docker run -i`: a megabyte of any bytes in and out, with its end; stdout and stderr apart."""
    data = bytes(range(256)) * 4096
    result = docker.run("--interactive", IMAGE, "sh", "-c", "cat; echo problem >&2; exit 4", stdin=data)
    assert result.code == 4
    assert result.stdout == data
    assert result.stderr == b"problem\n"


def test_a_terminal_has_size_echo_and_ctrl_c(docker: Dockerd) -> None:
    """`docker run -it` at a terminal: its size and its changes, ctrl-C, the exit code; then the tty is as before."""
    session = Session(docker.argv("run", "--rm", "-it", "--env", "PS1=$ ", IMAGE, "sh"), rows=37, columns=111)
    try:
        before = session.settings()
        use_terminal(session.terminal, timeout=docker.runtime.timeout)
        assert session.wait(60) == 6
        assert session.settings() == before
    finally:
        session.close()


def test_a_detached_container_is_stopped_restarted_killed_and_removed(docker: Dockerd) -> None:
    """run -d, logs, inspect, wait, stop with grace (143 handled, 137 not), restart, kill -s, rm: states agree."""
    script = "trap 'echo bye; exit 143' TERM; trap 'echo usr' USR1; echo begun; while :; do sleep 0.1; done"
    cid = docker.detached("--name", "life", "--hostname", "some-host", IMAGE, "sh", "-c", script)
    docker.wait_log("life", "begun\n")
    info = docker.inspect("life")
    assert info["Id"] == cid
    assert info["State"]["Status"] == "running"
    pid = info["State"]["Pid"]
    assert process.alive(pid)
    assert "echo begun" in process.command_line(pid)
    assert docker.ok("ps", "--format", "{{.ID}} {{.Status}}").startswith(cid[:12] + " Up")

    docker.ok("kill", "--signal", "USR1", "life")
    docker.wait_log("life", "usr\n")
    docker.ok("stop", "life")
    info = docker.inspect("life")["State"]
    assert (info["Status"], info["ExitCode"], info["Pid"], info["OOMKilled"]) == ("exited", 143, 0, False)
    assert not process.alive(pid)
    assert docker.call("logs", "life").stdout == b"begun\nusr\nbye\n"
    assert docker.call("exec", "life", "true").code == 1

    docker.ok("start", "life")
    wait_until(lambda: docker.call("logs", "life").stdout.count(b"begun") == 2, timeout=30, what="the second life")
    docker.ok("restart", "--time", "5", "life")
    wait_until(lambda: docker.call("logs", "life").stdout.count(b"begun") == 3, timeout=30, what="the third life")
    docker.ok("kill", "life")
    assert docker.ok("wait", "life") == "137"
    docker.ok("rm", "life")
    assert docker.call("inspect", "life").code == 1


def test_stop_kills_what_ignores_sigterm_and_rm_force_a_running_one(docker: Dockerd) -> None:
    """`docker stop -t 1` of a container that ignores SIGTERM: 137 within seconds. `rm -f` of a running one."""
    docker.detached("--name", "stubborn", IMAGE, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    docker.wait_log("stubborn", "up")
    begun = time.monotonic()
    docker.ok("stop", "--time", "1", "stubborn")
    assert time.monotonic() - begun < 15
    assert docker.inspect("stubborn")["State"]["ExitCode"] == 128 + signal.SIGKILL
    docker.ok("start", "stubborn")
    docker.ok("rm", "--force", "stubborn")


def test_a_foreground_run_is_signalled_through_its_client(docker: Dockerd) -> None:
    """SIGTERM to the client of `docker run` reaches the container's init, whose code the client ends with."""
    script = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    client = docker.start_client("run", "--rm", "--name", "front", IMAGE, "sh", "-c", script)
    assert client.popen.stdout is not None
    assert client.popen.stdout.read(3) == b"up\n"
    client.signal(signal.SIGTERM)
    result = client.wait(30)
    assert (result.code, result.stdout) == (9, b"caught\n")


def test_attach_and_logs_follow(docker: Dockerd) -> None:
    """`create -i`, `start -ai`, `attach` with input of its own, `logs -f` until the end, logs in the order written."""
    docker.ok("create", "--interactive", "--name", "talk", IMAGE, "sh", "-c", 'while read x; do echo "got $x"; done')
    docker.ok("start", "talk")
    following = docker.start_client("logs", "--follow", "talk")
    first = docker.call("attach", "talk", stdin=b"one\ntwo\n")
    assert first.stdout == b"got one\ngot two\n", first.describe()
    assert following.wait(30).stdout == b"got one\ngot two\n"
    assert docker.ok("wait", "talk") == "0"


def test_a_large_output_is_in_the_logs_whole(docker: Dockerd) -> None:
    """Megabytes of output of a container that ends at once are all in `docker logs`."""
    docker.detached("--name", "large", IMAGE, "sh", "-c", "seq 1 400000")
    assert docker.ok("wait", "large") == "0"
    result = docker.call("logs", "large", timeout=120)
    assert result.stdout == b"".join(b"%d\n" % number for number in range(1, 400001))


def test_restart_policy_and_healthcheck(docker: Dockerd) -> None:
    """--restart on-failure:2 starts a failing container three times in all; a health check by exec turns healthy."""
    docker.detached("--name", "again", "--restart", "on-failure:2", IMAGE, "sh", "-c", "echo try; exit 5")
    docker.detached(
        *("--name", "well", "--health-cmd", "test -e /tmp/well", "--health-interval", "1s", "--health-timeout", "20s"),
        *(IMAGE, "sh", "-c", "touch /tmp/well; sleep 1000"),
    )
    wait_until(
        lambda: docker.inspect("well")["State"]["Health"]["Status"] == "healthy",
        timeout=60,
        what="health",
        interval=0.5,
    )
    wait_until(lambda: docker.inspect("again")["RestartCount"] == 2, timeout=90, what="two restarts", interval=0.5)
    wait_until(lambda: docker.inspect("again")["State"]["Status"] == "exited", timeout=60, what="its end", interval=0.5)
    assert docker.ok("logs", "again").count("try") == 3
    assert docker.inspect("again")["State"]["ExitCode"] == 5


def test_five_containers_start_at_once(docker: Dockerd) -> None:
    """Concurrent `docker run`: all succeed, each with its own id and output."""
    clients = [docker.start_client("run", "--rm", IMAGE, "sh", "-c", f"echo {number}; hostname") for number in range(5)]
    outputs = [client.wait(docker.runtime.timeout * 2).expect(0).text.splitlines() for client in clients]
    assert [output[0] for output in outputs] == [str(number) for number in range(5)]
    assert len({output[1] for output in outputs}) == 5


@rootfs.runs_the_hosts_programs  # --init
def test_process_settings_of_the_command_line_hold(docker: Dockerd) -> None:
    """--user, --workdir, --env, --cap-*, --ulimit, --sysctl, --hostname, --add-host, --shm-size, --init and more."""
    script = """
    id -u; id -g; id -G; pwd; echo "$ONE"; grep CapBnd /proc/self/status; grep 'open files' /proc/self/limits
    cat /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname; grep other /etc/hosts; df -k /dev/shm | tail -1
    cat /proc/1/comm; cat /proc/self/oom_score_adj; grep NoNewPrivs /proc/self/status; cat /proc/sys/kernel/domainname
    """
    result = docker.run(
        *("--user", "1000:1000", "--group-add", "2000", "--workdir", "/var/work", "--env", "ONE=two words"),
        *("--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--ulimit", "nofile=123:456", "--hostname", "named"),
        *("--sysctl", "net.ipv4.ip_unprivileged_port_start=99", "--add-host", "other:192.0.2.9", "--shm-size", "8m"),
        *("--init", "--oom-score-adj", "77", "--security-opt", "no-new-privileges", IMAGE, "sh", "-c", script),
    )
    lines = result.expect(0).text.splitlines()
    assert lines[:5] == ["1000", "1000", "1000 2000", "/var/work", "two words"]
    assert int(lines[5].split()[1], 16) == 1 << 12
    assert lines[6].split()[3:5] == ["123", "456"]
    assert lines[7:9] == ["99", "named"]
    assert lines[9].split() == ["192.0.2.9", "other"]
    assert lines[10].split()[1] == "8192"
    assert lines[11] == "docker-init"
    assert lines[12] == "77"
    assert lines[13].split() == ["NoNewPrivs:", "1"]


def test_privileged_grants_all_of_the_guest(docker: Dockerd, runtime: Runtime, grants_all: None) -> None:
    """--privileged: all capabilities, mounts can be made; in a VM none of the host's devices is there."""
    result = docker.run(
        *("--privileged", IMAGE, "sh", "-c"),
        "mount -t tmpfs tmpfs /mnt 2>/dev/null || (mkdir /mnt && mount -t tmpfs tmpfs /mnt);"
        "grep -c ' /mnt ' /proc/mounts;"
        "hostname changed && hostname; grep Seccomp: /proc/self/status; ls /dev",
    )
    lines = result.expect(0).text.splitlines()
    assert lines[0] == "1"
    assert lines[1] == "changed"
    assert lines[2].split()[1] == "0"
    if runtime.is_vm:
        devices = set(lines[3:])
        assert "kvm" not in devices
        assert not devices & {name for name in os.listdir("/sys/class/block") if name.startswith(("sd", "nvme"))}


def test_seccomp_profiles_and_unconfined(docker: Dockerd, tmp_path: os.PathLike[str]) -> None:
    """--security-opt seccomp=FILE holds; Docker's default profile doesn't stop ordinary programs."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    }
    path = os.path.join(tmp_path, "profile.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(profile, file)
    result = docker.run("--security-opt", f"seccomp={path}", IMAGE, "mkdir", "/x")
    assert result.code == 1
    assert b"Operation not permitted" in result.stderr


@pytest.mark.only("runvm", "a virtual machine can't be in the host's namespaces")
def test_what_a_vm_makes_impossible_is_refused_clearly(docker: Dockerd) -> None:
    """--network host: 125 and a message that says why, at once."""
    result = docker.run("--network", "host", IMAGE, "true")
    assert result.code == 125, result.describe()
    assert b"host" in result.stderr
    assert b"network" in result.stderr


def test_docker_build_runs_its_commands_in_the_runtime(
    docker: Dockerd, runtime: Runtime, tmp_path: os.PathLike[str]
) -> None:
    """The classic builder's RUN uses the default runtime; the image that it makes runs."""
    with open(os.path.join(tmp_path, "Dockerfile"), "w", encoding="utf-8") as file:
        file.write(
            f'FROM {IMAGE}\nRUN cat {host.BOOT_ID} >/boot && echo built >/built\nCMD ["cat", "/built", "/boot"]\n'
        )
    docker.ok("build", "--tag", "built:test", os.fspath(tmp_path), timeout=runtime.timeout * 3)
    built, booted = docker.run("built:test").expect(0).text.splitlines()
    assert built == "built"
    assert (booted != host.boot_id()) == runtime.is_vm
    docker.ok("rmi", "built:test")
