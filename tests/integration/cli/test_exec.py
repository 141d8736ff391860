"""exec: further processes in a running container, by arguments and by a process file, attached and detached."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from framework import host, process
from framework.bundle import CAPABILITIES
from framework.process import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from framework.runtime import Box, Container, Runtime


@pytest.fixture(scope="module")
def running(module_box: Box) -> Container:
    """A container that all tests here exec into."""
    container = module_box.idle()
    container.bundle.process["env"].append("FROM_CONFIG=yes")
    container.bundle.process["cwd"] = "/tmp"
    return container.launch()


def process_file(container: Container, **fields: Any) -> str:
    """A file for --process, of the container's own process with *fields* changed."""
    path = f"{container.bundle.path}/process.json"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(container.bundle.process | fields, file)
    return path


def test_exec_exits_with_the_code_of_its_process(running: Container) -> None:
    """Exit codes pass through; a process ended by a signal gives 128+n."""
    for script, code in (("exit 0", 0), ("exit 33", 33), ("exit 255", 255), ("kill -TERM $$", 128 + signal.SIGTERM)):
        assert running.exec("sh", "-c", script).code == code


def test_exec_streams_pass_both_ways(running: Container) -> None:
    """stdin with its end, stdout and stderr apart, a megabyte of any bytes, and everything written before the end."""
    data = bytes(range(256)) * 4096
    result = running.exec("sh", "-c", "cat; echo problem >&2", stdin=data)
    assert result.code == 0
    assert result.stdout == data
    assert result.stderr == b"problem\n"


def test_exec_without_a_terminal_is_a_session_of_its_own(running: Container) -> None:
    """As under runc: its process group and session are its own, so that a signal to its group meets nobody else."""
    fields = running.exec("cat", "/proc/self/stat").expect(0).text.rpartition(") ")[2].split()
    ppid, group, session = (int(field) for field in fields[1:4])
    assert group == session > 1
    assert ppid == 0


def test_exec_inherits_environment_directory_and_user_from_the_config(running: Container) -> None:
    """Without flags: env, cwd and user of config.json; PATH finds the program; HOME is set from passwd."""
    shown = running.exec("sh", "-c", "echo $FROM_CONFIG $HOME; pwd; id -u; echo $PATH").expect(0).text.splitlines()
    assert shown == ["yes /root", "/tmp", "0", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def test_exec_flags_set_environment_directory_user_groups_and_capabilities(running: Container) -> None:
    """--env adds to the environment, --cwd, --user uid:gid, --additional-gids and --cap do as they say."""
    # runc takes either form of a flag, not both in one command
    flags = ("-e", "A=1", "-e", "B=two words", "--cwd", "/home/user", "--user", "1000:1000", "-g", "2000", "-g", "3000")
    shown = running.exec("sh", "-c", 'echo "$A $B $FROM_CONFIG"; pwd; id -u; id -g; id -G', flags=flags).expect(0)
    assert shown.text.splitlines() == ["1 two words yes", "/home/user", "1000", "1000", "1000 2000 3000"]
    capable = running.exec("grep", "CapEff", "/proc/self/status", flags=("--cap", "CAP_SYS_TIME")).expect(0)
    assert int(capable.text.split()[1], 16) & (1 << 25)


def test_exec_no_new_privs(running: Container) -> None:
    """--no-new-privs sets the bit."""
    assert running.sh("grep NoNewPrivs /proc/self/status").split() == ["NoNewPrivs:", "0"]
    assert running.sh("grep NoNewPrivs /proc/self/status", "--no-new-privs").split() == ["NoNewPrivs:", "1"]


def test_exec_by_process_file(running: Container) -> None:
    """--process takes a complete OCI process object, as containerd and conmon send it: nothing else adds to it."""
    path = process_file(
        running,
        args=["sh", "-c", "echo $ONLY-$FROM_CONFIG; pwd; id -u; grep CapEff /proc/self/status; umask"],
        env=["PATH=/bin", "ONLY=this"],
        cwd="/var",
        user={"uid": 7, "gid": 8, "umask": 0o27},
        capabilities={kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
    )
    result = running.runtime.ok("exec", "--process", path, running.id)
    lines = result.text.splitlines()
    assert lines[:3] == ["this-", "/var", "7"]
    assert int(lines[3].split()[1], 16) == 1 << 5
    if running.runtime.name != "runc":  # 1.1 leaves the umask of an exec as it is
        assert lines[4] == "0027"


def test_exec_by_a_process_from_a_pipe(running: Container) -> None:
    """--process /dev/stdin, and /dev/fd/N as a shell's <(…) gives it."""
    described = json.dumps(running.bundle.process | {"args": ["echo", "piped"]}).encode()
    assert running.runtime.ok("exec", "--process", "/dev/stdin", running.id, stdin=described).text == "piped"
    reader, writer = os.pipe()
    os.write(writer, described)
    os.close(writer)
    result = running.runtime.call("exec", "--process", f"/dev/fd/{reader}", running.id, pass_fds=(reader,))
    os.close(reader)
    assert result.expect(0).text == "piped"


def test_exec_detached_writes_a_pid_that_the_caller_reaps(running: Container) -> None:
    """--detach --pid-file: returns while the process runs; its pid is an orphan that ends with its exit code."""
    pid_file = f"{running.bundle.path}/exec.pid"
    path = process_file(running, args=["sh", "-c", "echo begun; sleep 0.5; echo ended; exit 17"])
    reader, writer = os.pipe()
    log = f"{running.bundle.path}/exec.log"
    arguments = ("exec", "--process", path, "--detach", "--pid-file", pid_file, running.id)
    started = running.runtime.start(*arguments, stdout=writer, stderr=writer, log=log)
    os.close(writer)
    started.wait(running.runtime.timeout).expect(0)
    with open(pid_file, encoding="ascii") as file:
        pid = int(file.read())
    assert process.alive(pid)
    assert process.parent(pid) == os.getpid()
    assert process.reap(pid, 20) == 17
    with os.fdopen(reader, "rb") as stream:
        assert stream.read() == b"begun\nended\n"


@pytest.mark.parametrize("flag", ["--pid-file", "--pidfd-socket"])
def test_an_exec_whose_caller_cannot_be_told_leaves_no_process(running: Container, runtime: Runtime, flag: str) -> None:
    """It has failed: nobody knows of a process that would go on."""
    if flag == "--pidfd-socket" and not runtime.is_vm:
        pytest.skip("runc 1.2 and later have it")
    for detach in ((), ("--detach",)):
        result = running.exec("sleep", "4711", flags=(flag, "/nowhere/at/all", *detach))
        assert result.code == 255, result.describe()
        wait_until(lambda: "sleep 4711" not in running.sh("ps -o args"), timeout=10, what="the end of the process")


def test_a_signal_to_the_pid_of_an_exec_reaches_its_process(running: Container) -> None:
    """containerd and conmon signal an exec by its pid: TERM is handled, KILL kills; nothing remains."""
    pid_file = f"{running.bundle.path}/signal.pid"
    script = "trap 'exit 18' TERM; touch /tmp/ready; while :; do sleep 0.05; done"
    for number, code in ((signal.SIGTERM, 18), (signal.SIGKILL, 137)):
        running.sh("rm -f /tmp/ready")
        with open(os.devnull, "wb") as null:
            arguments = ("exec", "--detach", "--pid-file", pid_file, running.id, "sh", "-c", script)
            started = running.runtime.start(*arguments, stdout=null, stderr=null)
            started.wait(running.runtime.timeout).expect(0)
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read())
        running.sh("while ! test -e /tmp/ready; do sleep 0.05; done")
        os.kill(pid, number)
        assert process.reap(pid, 20) == code
        process.wait_until(
            lambda: "touch /tmp/ready" not in running.sh("ps -o args"),
            timeout=10,
            what="the process is gone from the container",
        )


def test_many_execs_at_once(running: Container) -> None:
    """Ten at once: each gets its own streams and code."""
    started = [
        running.runtime.start(
            "exec", running.id, "sh", "-c", f"cat; echo {number}; exit {number}", stdin=b"%d-" % number
        )
        for number in range(10)
    ]
    for number, command in enumerate(started):
        result = command.wait(running.runtime.timeout * 2)
        assert (result.code, result.stdout) == (number, b"%d-%d\n" % (number, number))


def test_exec_of_a_missing_program_says_so(running: Container) -> None:
    """255, with the texts that docker turns into 127 and 126, whether detached or not."""
    missing = ("no such file or directory", "executable file not found")
    for argv, wanted in (
        (["no-such-program"], missing[1:]),
        (["/no/such/program"], missing),
        (["/etc/passwd"], ("permission denied",)),
    ):
        result = running.exec(*argv)
        assert result.code == 255, result.describe()
        assert any(words in result.error for words in wanted), result.describe()
        assert argv[0] in result.error
    detached = running.exec("no-such-program", flags=("--detach",))
    assert detached.code == 255
    missing_directory = running.exec("true", flags=("--cwd", "/no/such/dir"))
    assert missing_directory.code == 255, missing_directory.describe()


def test_exec_sees_the_containers_processes_and_is_seen(running: Container) -> None:
    """The pid namespace is the container's: init is 1 there, and `ps` gives host pids for all of them."""
    assert running.sh("cat /proc/1/comm; tr '\\0' ' ' </proc/1/cmdline").startswith("sh\nsh -c")
    before = running.runtime.ok("ps", "--format", "json", running.id).json()
    assert running.init_pid in before


def test_exec_leaves_no_process_when_its_caller_is_killed(running: Container) -> None:
    """kill -9 of a foreground exec's caller: the container goes on, and answers further execs."""
    command = running.runtime.start("exec", running.id, "sh", "-c", "echo up; echo $$ >/tmp/left; exec sleep 1001")
    assert command.popen.stdout is not None
    assert command.popen.stdout.read(3) == b"up\n"
    command.kill()
    assert running.sh("echo fine") == "fine"
    assert running.status == "running"
    running.sh("kill $(cat /tmp/left) || true")


@pytest.mark.parametrize("victim", ["container", "vmm"])
def test_a_container_ends_after_its_execs(box: Box, victim: str) -> None:
    """As process 1 of a PID namespace does: who hears of the container's end has heard of theirs."""
    container = box.sleeper()
    vmm = host.processes_of(container).get("vmm")
    pids = []
    with open(os.devnull, "wb") as null:
        for number in range(3):
            pid_file = f"{container.bundle.path}/exec-{number}.pid"
            arguments = ("exec", "--detach", "--pid-file", pid_file, container.id, "sleep", "1000")
            started = container.runtime.start(*arguments, stdout=null, stderr=null)
            started.wait(container.runtime.timeout).expect(0)
            with open(pid_file, encoding="ascii") as file:
                pids.append(int(file.read()))
    init = container.state()["pid"]
    os.kill(pids[0], signal.SIGSTOP)
    if victim == "vmm" and vmm:
        os.kill(vmm, signal.SIGKILL)
    else:
        container.runtime.ok("kill", container.id, "KILL")

    def go_on() -> None:
        with suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGCONT)

    later = threading.Timer(1, go_on)
    later.start()
    ended: dict[int, int] = {}
    process.wait_until(lambda: reap_any(ended) == init, timeout=20, what="the container's end", interval=0)
    later.join()
    assert [pid for pid in pids if pid not in ended and process.alive(pid)] == []
    assert {ended[pid] if pid in ended else process.reap(pid, 5) for pid in pids} == {137}


def reap_any(ended: dict[int, int]) -> int:
    """The pid of a child that has ended, its exit code kept in *ended*; 0 if there is none."""
    pid, status = os.waitpid(-1, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    ended[pid] = 128 - code if code < 0 else code
    return pid


def test_exec_wants_a_command(running: Container, runtime: Runtime) -> None:
    """Neither a command nor --process: a usage error."""
    result = runtime.call("exec", running.id)
    assert result.code == 255
    assert "process args cannot be empty" in result.error or "requires" in result.stderr.decode()


def test_exec_in_a_created_container_works(box: Box) -> None:
    """Before start too, as runc allows it; capabilities are those of the config."""
    container = box.idle()
    container.create()
    assert container.sh("echo early") == "early"
    container.start()
    shown = int(container.sh("grep CapBnd /proc/self/status").split()[1], 16)
    assert bin(shown).count("1") == len(CAPABILITIES)


def says(trace: Path, words: str) -> bool:
    """Whether the file has *words*."""
    return trace.exists() and words in trace.read_text()


@pytest.mark.only("runvm", "it is runvm's own trace that tells the moment")
def test_an_exec_killed_while_the_guest_begins_leaves_nothing(running: Container, tmp_path: Path) -> None:
    """The process that the guest has made by then has nobody on the host: it ends, too."""
    for attempt in range(20):
        trace = tmp_path / f"trace{attempt}"
        environment = {**os.environ, "RUNVM_TRACE": f"{trace}"}
        command = running.runtime.start("exec", running.id, "sleep", f"4321.{attempt}", env=environment)
        wait_until(partial(says, trace, "exec: shim started"), timeout=20, interval=0.001, what="the shim")
        command.kill()
        command.wait(10)
        if not says(trace, "exec: process started in the guest"):
            break  # else the guest was faster than we: the process has a shim, and goes on as under runc
    else:
        raise AssertionError("the guest was faster each time")
    time.sleep(0.5)  # what crun takes in the guest
    left = f"sleep 4321.{attempt}"
    wait_until(lambda: left not in running.sh("ps"), timeout=10, what="the end of the guest's process")
