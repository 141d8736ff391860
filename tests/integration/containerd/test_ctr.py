"""ctr run and ctr task: containerd's own client, with `--runc-binary`, on containers of every length of life."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from framework import archives, process
from framework import host as books
from framework.containerd import has_metrics
from framework.process import Process, wait_until
from framework.terminal import Session

if TYPE_CHECKING:
    from pathlib import Path

    from framework.containerd import Containerd
    from framework.runtime import Runtime

BUSYBOX, SAVED = "example.com/busybox:1", "example.com/saved:1"
SLEEP = ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"]


def test_run_passes_streams_and_codes(containerd: Containerd, runtime: Runtime, template: str) -> None:
    """`ctr run --rm`: stdin and stdout by FIFOs (ctr doesn't pass the end of its own), stderr apart, the code."""
    script = f"head -n 1; cat {books.BOOT_ID}; echo problem >&2; exit 6"
    result = containerd.run(
        runtime, "--rm", rootfs=template, name="streams", argv=["sh", "-c", script], stdin=b"input\n"
    )
    assert result.code == 6, result.describe()
    echoed, booted = result.text.splitlines()
    assert echoed == "input"
    assert (booted != books.boot_id()) == runtime.is_vm
    assert result.stderr.endswith(b"problem\n")


def test_a_task_is_looked_at_paused_killed_and_deleted(containerd: Containerd, runtime: Runtime, template: str) -> None:
    """run -d, task ls, ps, exec, metrics, pause, resume, kill, delete: what containerd's shim asks of a runtime."""
    containerd.run(runtime, "--detach", rootfs=template, name="task", argv=SLEEP).expect(0)
    listed = containerd.ctr("tasks", "list").expect(0).text.splitlines()[1].split()
    assert (listed[0], listed[2]) == ("task", "RUNNING")
    pid = int(listed[1])
    assert "sh -c trap" in process.command_line(pid)
    assert str(pid) in containerd.ctr("tasks", "ps", "task").expect(0).text
    executed = containerd.ctr("tasks", "exec", "--exec-id", "one", "task", "sh", "-c", "echo in it; exit 4")
    assert (executed.code, executed.text) == (4, "in it")
    if has_metrics():
        assert json.loads(containerd.ctr("tasks", "metrics", "--format", "json", "task").expect(0).stdout)
    containerd.ctr("tasks", "pause", "task").expect(0)
    assert "PAUSED" in containerd.ctr("tasks", "list").text
    containerd.ctr("tasks", "resume", "task").expect(0)
    assert "RUNNING" in containerd.ctr("tasks", "list").text
    containerd.ctr("tasks", "kill", "--signal", "SIGTERM", "task").expect(0)
    wait_until(lambda: "STOPPED" in containerd.ctr("tasks", "list").text, timeout=20, what="its end")
    assert b"non-zero exit code 3" in containerd.ctr("tasks", "delete", "task").expect(0).stderr
    containerd.ctr("containers", "delete", "task").expect(0)


def test_a_killed_task_is_137(containerd: Containerd, runtime: Runtime, template: str) -> None:
    """SIGKILL by containerd."""
    containerd.run(runtime, "--detach", rootfs=template, name="killed", argv=SLEEP).expect(0)
    containerd.ctr("tasks", "kill", "--signal", "SIGKILL", "killed").expect(0)
    wait_until(lambda: "STOPPED" in containerd.ctr("tasks", "list").text, timeout=20, what="its end")
    assert b"non-zero exit code 137" in containerd.ctr("tasks", "delete", "killed").expect(0).stderr


def test_namespaces_are_joined_by_the_pid_of_another_task(
    containerd: Containerd, runtime: Runtime, template: str
) -> None:
    """As a CRI pod's containers: network, ipc and uts of the first one's pid; both see one kernel, one network."""
    first = ["sh", "-c", "httpd -p 127.0.0.1:8000 -h /etc; sleep 1001"]
    containerd.run(runtime, "--detach", rootfs=template, name="sandbox", argv=first).expect(0)
    pid = int(containerd.ctr("tasks", "list").text.splitlines()[1].split()[1])
    joined = [word for kind in ("network", "ipc", "uts") for word in ("--with-ns", f"{kind}:/proc/{pid}/ns/{kind[:3]}")]
    containerd.run(runtime, "--detach", *joined, rootfs=template, name="member", argv=SLEEP).expect(0)
    fetch = ("tasks", "exec", "--exec-id", "fetch", "member", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/passwd")
    assert "root:" in containerd.ctr(*fetch).expect(0).text
    tasks = {line.split()[0]: int(line.split()[1]) for line in containerd.ctr("tasks", "list").text.splitlines()[1:]}
    for kind in ("net", "ipc", "uts"):
        assert books.namespace(tasks["member"], kind) == books.namespace(tasks["sandbox"], kind)
    assert books.namespace(tasks["member"], "pid") != books.namespace(tasks["sandbox"], "pid")
    containerd.ctr("tasks", "delete", "--force", "member")
    assert "sandbox" in containerd.ctr("tasks", "list").text


@pytest.mark.only("runvm", "it needs new versions of QEMU and virtiofsd, where runc needs CRIU")
def test_a_checkpoint_that_cant_be_had_is_refused_clearly(
    containerd: Containerd, runtime: Runtime, template: str
) -> None:
    """`ctr tasks checkpoint` fails and says that it isn't supported here; the task runs on."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] == "true":
        pytest.skip("QEMU and virtiofsd are new enough")
    containerd.run(runtime, "--detach", rootfs=template, name="stays", argv=SLEEP).expect(0)
    result = containerd.ctr("tasks", "checkpoint", "stays")
    assert result.code != 0
    assert b"support" in result.stderr
    assert "RUNNING" in containerd.ctr("tasks", "list").text


@pytest.mark.only("runvm", "runc has CRIU for it, which isn't everywhere")
def test_a_task_is_checkpointed(containerd: Containerd, runtime: Runtime, template: str, tmp_path: Path) -> None:
    """`ctr tasks checkpoint --image-path`, which pauses the task: it goes on, or with --exit it stops."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")
    containerd.run(runtime, "--detach", rootfs=template, name="saved", argv=SLEEP).expect(0)
    image = f"{tmp_path}/image"
    containerd.ctr("tasks", "checkpoint", "--image-path", image, "saved").expect(0)
    assert os.path.exists(f"{image}/checkpoint.json")
    assert "RUNNING" in containerd.ctr("tasks", "list").text
    assert containerd.ctr("tasks", "exec", "--exec-id", "one", "saved", "echo", "goes on").expect(0).text == "goes on"
    containerd.ctr("tasks", "checkpoint", "--exit", "--image-path", image, "saved").expect(0)
    wait_until(lambda: "STOPPED" in containerd.ctr("tasks", "list").text, timeout=20, what="its end")
    containerd.ctr("tasks", "delete", "saved")
    containerd.ctr("containers", "delete", "saved").expect(0)


@pytest.mark.only("runvm", "runc has CRIU for it, which isn't everywhere")
def test_a_container_is_restored_from_a_checkpoint_image(
    containerd: Containerd, runtime: Runtime, template: str, tmp_path: Path
) -> None:
    """`ctr containers checkpoint --rw --task`, then `ctr containers restore --live`: it goes on under a new name."""
    if runtime.ok("features").json()["annotations"]["org.opencontainers.runc.checkpoint.enabled"] != "true":
        pytest.skip("QEMU or virtiofsd is too old for checkpoints")
    script = "echo kept >/file; n=0; while :; do n=$((n + 1)); sleep 0.2; echo $n >/dev/shm/n; done"
    archives.write(f"{tmp_path}/image.tar", name=BUSYBOX, root=template, command=["sh"])
    containerd.ctr("images", "import", f"{tmp_path}/image.tar").expect(0)
    containerd.ctr("run", "--detach", "--runc-binary", runtime.path, BUSYBOX, "origin", "sh", "-c", script).expect(0)
    look = ("tasks", "exec", "--exec-id", "look")

    def count(name: str) -> int:
        return int(containerd.ctr(*look, name, "cat", "/dev/shm/n").text or "0")

    wait_until(lambda: count("origin") > 20, timeout=60, what="the counter")
    containerd.ctr("containers", "checkpoint", "--rw", "--task", "origin", SAVED).expect(0)
    containerd.ctr("tasks", "kill", "--signal", "SIGKILL", "origin").expect(0)
    wait_until(lambda: "STOPPED" in containerd.ctr("tasks", "list").text, timeout=20, what="its end")
    containerd.ctr("tasks", "delete", "origin")
    containerd.ctr("containers", "delete", "origin").expect(0)
    containerd.ctr("containers", "restore", "--rw", "--live", "again", SAVED).expect(0)
    first = count("again")
    assert first > 20
    assert containerd.ctr(*look, "again", "cat", "/file").text == "kept"
    wait_until(lambda: count("again") > first, timeout=30, what="the restored counter")
    containerd.ctr("tasks", "kill", "--signal", "SIGKILL", "again").expect(0)
    wait_until(lambda: "STOPPED" in containerd.ctr("tasks", "list").text, timeout=20, what="its end")
    containerd.ctr("tasks", "delete", "again")
    containerd.ctr("containers", "delete", "again").expect(0)
    containerd.ctr("images", "remove", "--sync", SAVED, BUSYBOX).expect(0)


def test_flags_of_run_reach_the_container(
    containerd: Containerd, runtime: Runtime, template: str, tmp_path: Path
) -> None:
    """--mount, --env, --cwd, --read-only, limits, capabilities, seccomp; a process of another user by exec."""
    (tmp_path / "file").write_text("of the host\n")
    script = (
        "exec 2>/dev/null; echo $WORD $PWD; cat /data/file; touch /data/x || echo read-only; touch /x || echo fixed;"
        "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; sleep 1000"
    )
    flags = (
        *("--detach", "--env", "WORD=given", "--cwd", "/tmp", "--read-only", "--seccomp"),
        *("--mount", f"type=bind,src={tmp_path},dst=/data,options=rbind:ro"),
        *("--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid"),
        *("--memory-limit", str(96 << 20), "--cpus", "1.5", "--cap-drop", "CAP_CHOWN"),
        *("--log-uri", f"file://{tmp_path}/log"),
    )
    containerd.run(runtime, *flags, rootfs=template, name="flags", argv=["sh", "-c", script]).expect(0)
    log = tmp_path / "log"
    wait_until(lambda: "Seccomp:" in log.read_text(), timeout=20, what="the script's output")
    lines = log.read_text().splitlines()
    assert lines[:4] == ["given /tmp", "of the host", "read-only", "fixed"]
    assert int(lines[4].split()[1], 16) & 1 == 0, "CAP_CHOWN"
    assert lines[5].split() == ["Seccomp:", "2"]
    run = ("tasks", "exec", "--exec-id", "id", "--user", "1000:1000", "flags", "id", "-u")
    assert containerd.ctr(*run).expect(0).text == "1000"
    if runtime.is_vm:
        files = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max")
        read = containerd.ctr("tasks", "exec", "--exec-id", "limits", "flags", "cat", *files)
        assert read.text.splitlines() == [str(96 << 20), "150000 100000"], read.describe()


def test_a_privileged_container(containerd: Containerd, runtime: Runtime, template: str) -> None:
    """--privileged: every capability, nothing masked; and it may mount."""
    script = "grep CapEff /proc/self/status; mount -t tmpfs none /tmp && echo mounted"
    result = containerd.run(runtime, "--rm", "--privileged", rootfs=template, name="all", argv=["sh", "-c", script])
    capabilities, mounted = result.expect(0).text.splitlines()
    assert int(capabilities.split()[1], 16).bit_count() >= 38
    assert mounted == "mounted"


def test_a_terminal(containerd: Containerd, runtime: Runtime, template: str) -> None:
    """`ctr run --tty`: a shell, the size of ctr's terminal, its code."""
    flags = ("run", "--runc-binary", runtime.path, "--rm", "--tty", "--env", "PATH=/bin", "--env", "PS1=$ ", "--rootfs")
    session = Session(containerd.argv(*flags, template, "terminal", "sh"), rows=37, columns=111)
    try:
        session.terminal.expect(b"$ ", timeout=60)
        session.terminal.send(b"while ! stty size | grep '37 111'; do sleep 0.1; done; tty\n")
        session.terminal.expect(b"/dev/pts/0")
        session.terminal.send(b"exit 6\n")
        assert session.wait(60) == 6
    finally:
        session.close()


def test_a_task_is_attached_to(containerd: Containerd, runtime: Runtime, template: str) -> None:
    """`ctr task attach`: what a detached task writes, its end and its code."""
    ticks = ["sh", "-c", "trap 'exit 5' TERM; while :; do echo tick; sleep 0.2; done"]
    containerd.run(runtime, "--detach", rootfs=template, name="attached", argv=ticks).expect(0)
    attached = Process(containerd.argv("tasks", "attach", "attached"))
    try:
        time.sleep(2)  # ctr says nothing when it is there
        containerd.ctr("tasks", "kill", "attached").expect(0)
        result = attached.wait(30)
    finally:
        attached.kill()
    assert result.code == 5, result.describe()
    assert b"tick" in result.stdout


@pytest.mark.only("runvm", "a virtual machine can't be in the host's network")
def test_the_hosts_network_is_refused(containerd: Containerd, runtime: Runtime, template: str) -> None:
    """`ctr run --net-host` fails at once, and says what to do."""
    result = containerd.run(runtime, "--rm", "--net-host", rootfs=template, name="host", argv=["true"])
    assert result.code != 0
    assert b"the host's network namespace can't be shared with a virtual machine" in result.stderr
