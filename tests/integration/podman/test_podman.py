"""podman run, exec, stop, logs, cp, top, stats, pause, terminals and networks: a container's life under conmon."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from framework import host as books
from framework import process, rootfs
from framework.engine import use_terminal
from framework.podman import IMAGE
from framework.process import wait_until
from framework.terminal import Session

if TYPE_CHECKING:
    from framework.podman import Podman
    from framework.runtime import Runtime

SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done")


def test_run_passes_streams_and_codes(podman: Podman, runtime: Runtime) -> None:
    """`podman run`: the id as hostname, the program's code, streams apart, a megabyte of stdin."""
    result = podman.run(IMAGE, "sh", "-c", f"hostname; cat {books.BOOT_ID}; echo problem >&2; exit 23")
    assert result.code == 23, result.describe()
    hostname, booted = result.text.splitlines()
    assert len(hostname) == 12
    assert (booted != books.boot_id()) == runtime.is_vm
    assert result.stderr == b"problem\n"
    data = bytes(range(256)) * 4096
    assert podman.run("--interactive", IMAGE, "cat", stdin=data).stdout == data


def test_a_missing_program_is_127_and_one_that_cant_run_126(podman: Podman) -> None:
    """Podman's codes come from the runtime's words."""
    assert podman.run(IMAGE, "no-such-program").code == 127
    assert podman.run(IMAGE, "/etc/passwd").code == 126


def test_a_containers_life(podman: Podman, tmp_path: os.PathLike[str]) -> None:
    """-d, logs, exec in its forms, top, stats, pause, cp both ways, kill, stop, restart, wait, rm."""
    script = "trap 'echo bye; exit 7' TERM; trap 'echo usr' USR1; echo begun; while :; do sleep 0.1; done"
    podman.detached("--name", "life", "--env", "A=b", "--memory", "200m", IMAGE, "sh", "-c", script)
    podman.wait_log("life", "begun")
    state = podman.inspect("life")["State"]
    assert state["Status"] == "running"
    assert process.alive(state["Pid"])
    assert "conmon" in process.command_line(process.parent(state["Pid"]))

    executed = podman.call("exec", "--env", "C=d", "--workdir", "/home", "life", "sh", "-c", "echo $A $C; pwd; exit 9")
    assert (executed.code, executed.text) == (9, "b d\n/home")
    assert podman.call("exec", "--interactive", "life", "cat", stdin=b"through").stdout == b"through"
    assert podman.ok("exec", "--user", "1000", "life", "id", "-u") == "1000"
    assert podman.call("exec", "life", "no-such-program").code == 127
    podman.ok("exec", "--detach", "life", "touch", "/tmp/detached")
    wait_until(
        lambda: podman.call("exec", "life", "test", "-e", "/tmp/detached").code == 0, timeout=20, what="the file"
    )

    figures = json.loads(podman.ok("stats", "--no-stream", "--format", "json", "life"))[0]
    assert figures["name"] == "life"
    # Podman 5 reads the cgroup, which has the virtual machine's own need on top of the limit
    assert "209.7MB" in figures["mem_usage"] or podman.runtime.is_vm
    podman.ok("pause", "life")
    assert podman.inspect("life")["State"]["Status"] == "paused"
    podman.ok("unpause", "life")

    source = os.path.join(tmp_path, "file")
    with open(source, "w", encoding="utf-8") as file:
        file.write("copied in\n")
    podman.ok("cp", source, "life:/var/file")
    assert podman.ok("exec", "life", "cat", "/var/file") == "copied in"
    podman.ok("exec", "life", "sh", "-c", "echo out >/var/other")
    podman.ok("cp", "life:/var/other", os.path.join(tmp_path, "back"))
    with open(os.path.join(tmp_path, "back"), encoding="utf-8") as file:
        assert file.read() == "out\n"
    assert not os.path.exists("/var/file"), "podman cp joins the pid's mount namespace: it mustn't be the host's"

    podman.ok("kill", "--signal", "USR1", "life")
    podman.wait_log("life", "usr")
    podman.ok("stop", "life")
    assert podman.inspect("life")["State"]["ExitCode"] == 7
    podman.ok("start", "life")
    wait_until(lambda: podman.ok("logs", "life").count("begun") == 2, timeout=30, what="the second life", interval=0.2)
    podman.ok("restart", "life")
    podman.ok("kill", "life")
    assert podman.ok("wait", "life") == "137"
    podman.ok("rm", "life")


def test_files_are_copied_into_and_out_of_the_volumes_of_a_running_container(
    podman: Podman, tmp_path: os.PathLike[str]
) -> None:
    """podman cp joins the mount namespace of the container's pid: a named volume, a bind, one in another, a read-only
    one, which refuses."""
    bound = os.path.join(tmp_path, "bound")
    os.makedirs(os.path.join(bound, "fixed"))
    source = os.path.join(tmp_path, "file")
    with open(source, "w", encoding="utf-8") as file:
        file.write("copied\n")
    mounts = ("--volume", f"{bound}:/bound", "--volume", "named:/bound/named", "--volume", f"{bound}/fixed:/fixed:ro")
    podman.detached("--name", "full", *mounts, IMAGE, *SLEEP)
    try:
        for target in ("/bound/in-bind", "/bound/named/in-volume"):
            podman.ok("cp", source, f"full:{target}")
            assert podman.ok("exec", "full", "cat", target) == "copied"
            podman.ok("cp", f"full:{target}", os.path.join(tmp_path, "back"))
        assert sorted(os.listdir(bound)) == ["fixed", "in-bind", "named"]
        assert podman.call("cp", source, "full:/fixed/file").code != 0
        assert os.listdir(os.path.join(bound, "fixed")) == []
    finally:
        podman.call("rm", "--force", "--time", "0", "full")
        podman.call("volume", "rm", "named")


def test_top_shows_processes(podman: Podman) -> None:
    """`podman top` joins the pid's namespaces and reads /proc there: the container's command is in it."""
    podman.detached("--name", "top", IMAGE, *SLEEP)
    pid, command = podman.ok("top", "top", "hpid", "args").splitlines()[1].split(maxsplit=1)
    assert int(pid) == podman.inspect("top")["State"]["Pid"]
    assert command.strip() == " ".join(SLEEP)


def test_a_terminal(podman: Podman) -> None:
    """`podman run -it`: size and its changes, ctrl-C, the exit code."""
    command = podman.argv("run", "--rm", "-it", "--env", "PS1=$ ", IMAGE, "sh")
    session = Session(command, rows=37, columns=111)
    try:
        use_terminal(session.terminal, timeout=podman.runtime.timeout)
        assert session.wait(30) == 6
    finally:
        session.close()


@rootfs.runs_the_hosts_programs
def test_volumes_and_settings(podman: Podman, tmp_path: os.PathLike[str]) -> None:
    """--volume, --tmpfs, --read-only, --user, --init, --hostname, --cap-drop, --sysctl, --ulimit."""
    bound = os.fspath(tmp_path)
    os.chmod(bound, 0o777)
    script = "echo x >/bound/made; touch /no; touch /t/yes && echo t; id -u; hostname; cat /proc/1/comm; ulimit -n"
    result = podman.run(
        *(
            "--volume",
            f"{bound}:/bound",
            "--tmpfs",
            "/t:size=1m",
            "--read-only",
            "--user",
            "1000",
            "--hostname",
            "named",
        ),
        *(
            "--init",
            "--cap-drop",
            "ALL",
            "--ulimit",
            "nofile=99:99",
            "--ulimit",
            "nproc=999:999",
            IMAGE,
            "sh",
            "-c",
            script,
        ),
    )
    assert "Read-only file system" in result.stderr.decode()
    *seen, init, limit = result.stdout.decode().splitlines()
    assert seen == ["t", "1000", "named"], result.describe()
    assert init in ("catatonit", "podman-init")
    assert limit == "99"
    with open(os.path.join(bound, "made"), encoding="utf-8") as file:
        assert file.read() == "x\n"


def test_networks_and_names(podman: Podman) -> None:
    """A user network with aardvark's names, a published port, --network none and --network container:x."""
    podman.ok("network", "create", "rvtnet")
    serve = "mkdir -p /www && echo page >/www/index.html && exec httpd -f -p 80 -h /www"
    podman.detached("--name", "web", "--network", "rvtnet", "--publish", "127.0.0.1:18081:80", IMAGE, "sh", "-c", serve)
    fetched = podman.run(
        "--network",
        "rvtnet",
        "--cap-add",
        "NET_RAW",
        IMAGE,
        "sh",
        "-c",
        "ping -c 1 -W 5 web && wget -q -O - http://web/",
    )
    assert fetched.expect(0).text.endswith("page")
    wait_until(
        lambda: "page" in process.call(["curl", "-s", "http://127.0.0.1:18081/"]).text, timeout=20, what="the page"
    )
    joined = podman.run("--network", "container:web", IMAGE, "wget", "-q", "-O", "-", "http://127.0.0.1/")
    assert joined.expect(0).text == "page"
    alone = podman.run("--network", "none", IMAGE, "ip", "-o", "addr").expect(0).text
    assert "127.0.0.1" in alone
    assert "eth0" not in alone


@rootfs.is_the_hosts
def test_a_pod_shares_its_network(podman: Podman, runtime: Runtime) -> None:
    """Two containers of a pod: one network, hostname and /dev/shm, roots and ends of their own; one VM."""
    from framework.podman import PARENT

    podman.ok(
        "pod", "create", "--name", "pod", "--cgroup-parent", PARENT, "--hostname", "podhost", "--share", "net,uts,ipc"
    )
    podman.ok(
        "run",
        "--detach",
        "--pod",
        "pod",
        "--name",
        "one",
        IMAGE,
        "sh",
        "-c",
        "httpd -p 127.0.0.1:8000 -h /etc; sleep 1001",
    )
    podman.ok("run", "--detach", "--pod", "pod", "--name", "two", IMAGE, *SLEEP)
    assert "root:" in podman.ok("exec", "two", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/passwd")
    assert podman.ok("exec", "one", "hostname") == podman.ok("exec", "two", "hostname") == "podhost"
    podman.ok("exec", "one", "sh", "-c", "echo shared >/dev/shm/file; touch /only-one")
    assert podman.ok("exec", "two", "cat", "/dev/shm/file") == "shared"
    assert podman.call("exec", "two", "test", "-e", "/only-one").code == 1
    assert "sleep 1001" not in podman.ok("exec", "two", "ps", "-o", "args"), "processes are apart"
    boots = {podman.ok("exec", name, "cat", "/proc/sys/kernel/random/boot_id") for name in ("one", "two")}
    assert len(boots) == 1, "one VM"
    if runtime.is_vm:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            assert file.read().strip() not in boots
    pids = [podman.inspect(name)["State"]["Pid"] for name in ("one", "two")]
    assert books.namespace(pids[0], "net") == books.namespace(pids[1], "net")
    assert books.namespace(pids[0], "mnt") != books.namespace(pids[1], "mnt")

    podman.ok("rm", "--force", "--time", "0", "one")
    assert podman.ok("exec", "two", "echo", "alive") == "alive"
    podman.ok("pod", "stop", "--time", "1", "pod")
    podman.ok("pod", "start", "pod")
    assert podman.ok("exec", "two", "echo", "again") == "again"
    podman.ok("pod", "rm", "--force", "--time", "0", "pod")


def test_shared_memory_ends_at_its_size(podman: Podman) -> None:
    """The /dev/shm that Podman makes is memory in the guest, too, and no larger than --shm-size; --ipc container:x
    shares it, and it stays while one of them is there."""
    script = """
        df -k /dev/shm | awk 'END {print $2}'; stat -c %a /dev/shm
        head -c 5000000 /dev/zero 2>/dev/null >/dev/shm/big || stat -c %s /dev/shm/big
        rm /dev/shm/big; echo kept >/dev/shm/file; exec sleep 1001
    """
    podman.detached("--name", "first", "--shm-size", "3m", "--ipc", "shareable", IMAGE, "sh", "-c", script)
    wait_until(lambda: podman.call("exec", "first", "cat", "/dev/shm/file").text == "kept", timeout=60, what="the file")
    assert podman.ok("logs", "first").splitlines() == ["3072", "1777", str(3 << 20)]
    podman.detached("--name", "second", "--ipc", "container:first", IMAGE, *SLEEP)
    assert podman.ok("exec", "second", "cat", "/dev/shm/file") == "kept"
    kind = "awk '$2 == \"/dev/shm\" {print $3, $4}' /proc/mounts"
    assert podman.ok("exec", "second", "sh", "-c", kind).startswith("tmpfs rw,nosuid,nodev,noexec")
    podman.ok("exec", "second", "touch", "/dev/shm/other")
    podman.ok("rm", "--force", "--time", "0", "second")
    assert podman.ok("exec", "first", "ls", "/dev/shm").split() == ["file", "other"]


@pytest.mark.only("runvm", "a virtual machine can't be in the host's network")
def test_the_hosts_network_is_refused(podman: Podman) -> None:
    """--network host: 126, and a message that says why."""
    result = podman.run("--network", "host", IMAGE, "true")
    assert result.code in (125, 126)
    assert b"network" in result.stderr
