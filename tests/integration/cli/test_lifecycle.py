"""create, start, state, list, kill, delete, run: what succeeds, what fails with which words, and what is left."""

from __future__ import annotations

import datetime
import json
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.process import wait_until
from framework.runtime import read_log

if TYPE_CHECKING:
    from framework.runtime import Box, Container, Runtime

UNKNOWN = "no-such-container"


def test_run_without_being_a_subreaper_waits_and_gives_the_exit_code(box: Box, runtime: Runtime) -> None:
    """--no-subreaper, in the foreground: the container's code and output, and nothing left of it."""
    container = box.sh("echo hello; exit 7")
    result = container.run("--no-subreaper")
    assert (result.code, result.stdout) == (7, b"hello\n"), result.describe()
    assert container.id not in runtime.ids()


def test_a_container_goes_from_created_to_running_to_stopped_to_gone(box: Box, runtime: Runtime) -> None:
    """state, list, ps and the pid-file agree at each step; the pid is an orphan that dies with init's code."""
    container = box.sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
    container.bundle.config["annotations"] = {"org.example.key": 'value with "quotes"'}
    before = datetime.datetime.now(datetime.UTC)
    container.create()

    state = container.state()
    assert state["id"] == container.id
    assert state["status"] == "created"
    assert state["bundle"] == container.bundle.path
    assert state["annotations"]["org.example.key"] == 'value with "quotes"'
    assert state["ociVersion"].startswith("1.")
    assert state["pid"] == container.read_pid_file()
    created = datetime.datetime.fromisoformat(state["created"][:19] + "+00:00")
    assert abs((created - before).total_seconds()) < 60
    assert process.alive(state["pid"])
    assert process.parent(state["pid"]) == os.getpid(), "an orphan, so its engine (a subreaper) can reap it"
    assert container.stdout() == b"", "nothing runs before start"
    listed = json.loads(runtime.ok("list", "--format", "json").stdout)
    assert [(entry["id"], entry["status"], entry["pid"]) for entry in listed] == [
        (container.id, "created", state["pid"])
    ]

    container.start()
    container.wait_stdout(b"ready\n")
    running = container.state()
    assert running["status"] == "running"
    assert running["pid"] == state["pid"]
    assert running["created"] == state["created"]
    table = runtime.ok("list").text.splitlines()
    assert table[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert table[1].split()[:4] == [container.id, str(state["pid"]), "running", container.bundle.path]
    assert table[1].split()[5] == "root"
    assert runtime.ids() == [container.id]
    pids = runtime.ok("ps", "--format", "json", container.id).json()
    assert state["pid"] in pids
    assert all(process.alive(pid) for pid in pids)
    assert runtime.ok("ps", container.id).text.splitlines()[0].split()[:2] == ["UID", "PID"]

    container.kill("TERM")
    assert container.wait() == 3
    container.wait_status("stopped")
    assert container.state()["pid"] == 0
    assert json.loads(runtime.ok("list", "--format", "json").stdout)[0]["status"] == "stopped"
    container.delete()
    gone = runtime.call("state", container.id)
    assert (gone.code, gone.error) == (1, "container does not exist")
    assert runtime.ids() == []


def test_operations_on_an_unknown_container_say_that_it_does_not_exist(runtime: Runtime) -> None:
    """Each fails with the words that containerd looks for; `delete --force` succeeds (engines do it twice)."""
    commands = (
        ["state", UNKNOWN],
        ["start", UNKNOWN],
        ["kill", UNKNOWN, "9"],
        ["kill", "--all", UNKNOWN, "9"],
        ["delete", UNKNOWN],
        ["pause", UNKNOWN],
        ["resume", UNKNOWN],
        ["ps", UNKNOWN],
        ["update", UNKNOWN],
        ["events", "--stats", UNKNOWN],
    )
    for command in commands:
        result = runtime.call(*command)
        assert result.code == 1, result.describe()
        assert result.error == "container does not exist", result.describe()
        assert b"container does not exist" in result.stderr, "the user sees it as well"
        assert result.stdout == b""
    execed = runtime.call("exec", UNKNOWN, "true")
    assert execed.code == 255
    assert "container does not exist" in execed.error
    runtime.ok("delete", "--force", UNKNOWN)


def test_a_running_container_refuses_what_needs_another_state(box: Box, runtime: Runtime) -> None:
    """A second create, a second start, delete without --force and resume fail, and leave the container as it was."""
    container = box.sleeper()
    pid = container.init_pid

    again = container.try_create()
    assert again.code == 1
    assert "container with given ID already exists" in again.error
    assert container.read_pid_file() == pid

    start = runtime.call("start", container.id)
    assert (start.code, start.error) == (1, "cannot start an already running container")
    delete = runtime.call("delete", container.id)
    assert (delete.code, delete.error) == (1, f"cannot delete container {container.id} that is not stopped: running")
    resume = runtime.call("resume", container.id)
    assert (resume.code, resume.error) == (1, "container not paused")
    assert container.state()["status"] == "running"
    assert container.state()["pid"] == pid

    container.delete("--force")
    assert container.wait(5) == 128 + signal.SIGKILL
    assert runtime.ids() == []
    container.delete("--force")


def test_a_stopped_container_refuses_all_but_delete(box: Box, runtime: Runtime) -> None:
    """After init's end: start, kill, exec, pause, ps fail with the words that engines look for; delete ends it."""
    container = box("sh", "-c", "exit 7")
    container.create()
    container.start()
    assert container.wait() == 7
    container.wait_status("stopped")

    start = runtime.call("start", container.id)
    assert (start.code, start.error) == (1, "cannot start a container that has stopped")
    for signal_flags in (["kill", container.id, "15"], ["kill", container.id, "9"]):
        killed = runtime.call(*signal_flags)
        assert (killed.code, killed.error) == (1, "container not running")
    runtime.ok("kill", "--all", container.id, "9")
    execed = container.exec("true")
    assert execed.code == 255
    assert "cannot exec in a stopped container" in execed.error
    paused = runtime.call("pause", container.id)
    assert (paused.code, paused.error) == (1, "container not running")
    assert runtime.call("resume", container.id).code == 1
    shown = runtime.ok("ps", container.id).stdout.decode().splitlines()
    assert (len(shown), shown[0].split()[1]) == (1, "PID"), "the title alone, as with runc"
    assert not json.loads(runtime.ok("ps", "--format", "json", container.id).stdout)
    container.delete()
    again = runtime.call("delete", container.id)
    assert (again.code, again.error) == (1, "container does not exist")


def test_a_created_container_can_be_killed_or_deleted(box: Box, runtime: Runtime) -> None:
    """Before start: kill -9 ends it (137), delete takes it away with its process."""
    container = box.idle()
    container.create()
    execed_state = container.state()["status"]
    assert execed_state == "created"
    container.kill(signal.SIGKILL)
    assert container.wait() == 128 + signal.SIGKILL
    container.wait_status("stopped")
    container.delete()

    other = box.idle()
    other.create()
    other.delete()
    assert other.wait(5) == 128 + signal.SIGKILL
    assert runtime.ids() == []


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 42", 42),
        ("exit 255", 255),
        ("kill -KILL $$; exit 8", 8),
    ],
    ids=["0", "42", "255", "own-kill"],
)
def test_run_exits_with_the_code_of_the_container(box: Box, runtime: Runtime, script: str, code: int) -> None:
    """`run` passes init's exit code on and leaves no container. A PID 1 doesn't die of its own SIGKILL."""
    result = box.sh(script).run()
    assert result.code == code, result.describe()
    assert runtime.ids() == []


def test_a_signal_from_outside_reaches_init_by_name_and_by_number(box: Box) -> None:
    """kill takes TERM, SIGTERM and 15, and any other signal, and defaults to SIGTERM."""
    container = box.sh(
        "for s in HUP USR1 USR2 WINCH TERM; do trap \"echo got $s\" $s; done; trap 'echo bye; exit 9' INT; echo ready;"
        "while :; do sleep 0.05; done"
    ).launch()
    container.wait_stdout(b"ready\n")
    for sent, shown in (("HUP", "HUP"), ("SIGUSR1", "USR1"), (str(int(signal.SIGUSR2)), "USR2"), ("winch", "WINCH")):
        container.kill(sent)
        container.wait_stdout(f"got {shown}\n".encode())
    container.runtime.ok("kill", container.id)
    container.wait_stdout(b"got TERM\n")
    bad = container.runtime.call("kill", container.id, "NOSUCH")
    assert bad.code == 1
    assert "NOSUCH" in bad.error
    container.kill("INT")
    assert container.wait() == 9
    assert container.stdout().endswith(b"bye\n")


def test_a_signal_to_the_pid_reaches_init(box: Box) -> None:
    """An engine or systemd may signal the pid itself: SIGTERM is init's to handle, SIGKILL ends the container."""
    polite = box.sh("trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done").launch()
    polite.wait_stdout(b"ready\n")
    os.kill(polite.init_pid, signal.SIGTERM)
    assert polite.wait() == 4
    polite.wait_status("stopped")

    stubborn = box.sh("trap '' TERM; echo ready; while :; do sleep 0.05; done").launch()
    stubborn.wait_stdout(b"ready\n")
    os.kill(stubborn.init_pid, signal.SIGKILL)
    assert stubborn.wait() == 128 + signal.SIGKILL
    stubborn.wait_status("stopped")
    stubborn.delete()


def test_kill_all_reaches_every_process(box: Box) -> None:
    """`kill --all` signals all processes of the container, not init alone."""
    container = box.sh(
        "sh -c 'trap \"echo child; exit\" USR1; echo one; while :; do sleep 0.05; done' &"
        "trap 'echo init' USR1; echo two;"
        "while :; do sleep 0.05; done"
    ).launch()
    container.wait_stdout(b"one\n")
    container.wait_stdout(b"two\n")
    container.runtime.ok("kill", "--all", container.id, "USR1")
    container.wait_stdout(b"child\n")
    container.wait_stdout(b"init\n")


def test_run_detached_returns_while_the_container_runs(box: Box) -> None:
    """`run --detach --pid-file` returns at once, with a reapable orphan's pid; the container stays to be deleted."""
    container = box.sh("echo begun; sleep 0.5; exit 6").launch()
    assert process.parent(container.init_pid) == os.getpid()
    assert container.wait() == 6
    assert container.stdout() == b"begun\n"
    container.wait_status("stopped")
    container.delete()


def test_run_keep_leaves_the_stopped_container(box: Box, runtime: Runtime) -> None:
    """With --keep a foreground `run` leaves a stopped container behind."""
    container = box.sh("exit 5")
    assert container.run("--keep").code == 5
    assert container.status == "stopped"
    container.delete()
    assert runtime.ids() == []


def test_run_passes_signals_on_to_the_container(box: Box) -> None:
    """SIGTERM and SIGUSR1 to a foreground `run` are init's; `run` ends with init's code."""
    container = box.sh(
        "trap 'echo usr1' USR1; trap 'echo term; exit 11' TERM; echo ready; while :; do sleep 0.05; done"
    )
    container.bundle.save()
    out = f"{container.bundle.path}/out"
    with open(out, "wb") as file:
        running = container.runtime.start("run", "--bundle", container.bundle.path, container.id, stdout=file)
    wait_for_text(out, "ready\n", container.runtime.timeout)
    running.signal(signal.SIGUSR1)
    wait_for_text(out, "usr1\n", 10)
    running.signal(signal.SIGTERM)
    assert running.wait(20).code == 11
    wait_for_text(out, "term\n", 1)


def test_run_exits_with_128_plus_the_signal_that_ended_the_container(box: Box) -> None:
    """A container that SIGKILL ended from outside gives 137 to `run`'s caller."""
    container = box.sh("echo ready; while :; do sleep 0.05; done")
    container.bundle.save()
    out = f"{container.bundle.path}/out"
    with open(out, "wb") as file:
        running = container.runtime.start("run", "--bundle", container.bundle.path, container.id, stdout=file)
    wait_for_text(out, "ready\n", container.runtime.timeout)
    container.kill("KILL")
    assert running.wait(20).code == 128 + signal.SIGKILL


def wait_for_text(path: str, wanted: str, timeout: float) -> None:
    def there() -> bool:
        with open(path, encoding="utf-8") as file:
            return wanted in file.read()

    wait_until(there, timeout=timeout, what=f"{wanted!r} in {path}")


def test_a_missing_program_fails_at_create(box: Box, runtime: Runtime) -> None:
    """create (not start) fails soon, with the texts that docker turns into 127 and 126; nothing is left."""
    missing = ("no such file or directory", "executable file not found in $path")
    for command, wanted in (
        ("/bin/no-such-program", missing[:1]),
        ("no-such-program", missing[1:]),
        ("/etc/passwd", ("permission denied",)),
        ("/etc", ("permission denied",)),
    ):
        container = box(command)
        begun = time.monotonic()
        result = container.try_create()
        # Clearing up once waited 20 s for the supervisor's answer, which had already ended
        assert time.monotonic() - begun < 15
        assert result.code == 1, result.describe()
        assert any(words in result.error.lower() for words in wanted), result.describe()
        assert command in result.error
        assert runtime.call("state", container.id).error == "container does not exist"
    assert runtime.ids() == []


@pytest.mark.parametrize("terminal", [False, True])
def test_a_program_that_the_kernel_refuses_is_told_on_stderr(box: Box, terminal: bool) -> None:
    """What execve(2) says of a file of no known format, or of a script whose interpreter isn't there, in the words that
    people know from runc; by run and by exec."""
    for content, wanted in (
        ("no program\n", "exec /bad: exec format error"),
        ("", "exec /bad: exec format error"),
        ("#!/no/such/interpreter\n", "exec /bad: no such file or directory"),
    ):
        container = box("/bad")
        container.bundle.file("/bad", content, mode=0o755)
        container.bundle.process["terminal"] = terminal
        if terminal:
            shown = container.terminal(partial(container.create, "--console-socket"))
            container.start()
            assert shown.read_to_end().decode() == f"{wanted}\r\n"
            continue
        result = container.run()
        assert result.code in (1, 255)  # runc 1.1 and before, 1.2 and later
        assert result.stderr.decode() == f"{wanted}\n"
    if not terminal:
        other = box.sleeper()
        other.bundle.file("/bad", "no program\n", mode=0o755)
        result = other.exec("/bad")
        assert result.code in (1, 255)
        assert result.stderr == b"exec /bad: exec format error\n"


def test_bundle_defaults_to_the_current_directory(box: Box, runtime: Runtime) -> None:
    """Without --bundle the bundle is where one is; the state tells an absolute path."""
    container = box("true")
    container.bundle.save()
    with open(f"{container.bundle.path}/out", "wb") as out:
        started = runtime.start("create", container.id, cwd=container.bundle.path, stdout=out, stderr=out)
        started.wait(runtime.timeout).expect(0)
    assert container.state()["bundle"] == container.bundle.path
    container.delete()


def test_commands_work_where_the_current_directory_is_gone(box: Box, runtime: Runtime) -> None:
    """containerd's shim calls from a bundle that may be deleted already: state, kill and delete don't mind."""
    container = box.sleeper()
    call_from_a_deleted_directory(container, log=None)
    assert runtime.ids() == []


@pytest.mark.only("runvm", "runc fails where the directory of --log is gone")
def test_commands_work_where_the_logs_directory_is_gone(box: Box, runtime: Runtime) -> None:
    """containerd removes the bundle, and the log in it, before its last delete: no reason to leave a container."""
    container = box.sleeper()
    call_from_a_deleted_directory(container, log=f"{runtime.scratch}/away/log.json")
    assert runtime.ids() == []


def call_from_a_deleted_directory(container: Container, *, log: str | None) -> None:
    away = f"{container.runtime.scratch}/away"
    for command in (["state", container.id], ["kill", container.id, "9"], ["delete", "--force", container.id]):
        os.makedirs(away)
        script = 'cd "$0" && rmdir "$0" && exec "$@"'
        argv = container.runtime.argv(*command, log=log)
        process.call(["sh", "-c", script, away, *argv], timeout=container.runtime.timeout).expect(0)


def test_ids_are_checked(box: Box, runtime: Runtime) -> None:
    """An id that could leave the state directory, or is empty, is refused with runc's message, nothing is written."""
    container = box()
    container.bundle.save()
    for cid in ("../escape", "a/b", "/abs", ".", "..", "a b", "a\nb", "ü"):
        result = runtime.call("create", "--bundle", container.bundle.path, cid)
        assert result.code == 1, result.describe()
        assert "invalid container ID format" in result.error, result.describe()
    empty = runtime.call("create", "--bundle", container.bundle.path, "")
    assert empty.code == 1
    assert "container id cannot be empty" in empty.error
    assert os.listdir(runtime.root) == []
    assert not os.path.exists(f"{os.path.dirname(runtime.root)}/escape")


def test_odd_but_valid_ids_work(box: Box) -> None:
    """Letters, digits and _ + - . make an id; it may be long."""
    for cid in (f"rvt{os.getpid()}-A_b+c.d-9", f"rvt{os.getpid()}-" + "x" * 64):
        container = box("true", cid=cid)
        assert container.run().code == 0


def test_wrong_usage_is_said_on_stderr(runtime: Runtime) -> None:
    """A missing argument, an unknown flag or an unknown command end with a code other than 0 and say what was wrong."""
    for arguments, wanted in (
        (["create"], "requires exactly 1 argument"),
        (["state"], "requires exactly 1 argument"),
        (["state", "a", "b"], "requires exactly 1 argument"),
        (["start"], "requires exactly 1 argument"),
        (["kill"], "requires a minimum of 1 argument"),
        (["exec"], "requires a minimum of 1 argument"),
        (["create", "--nonsense", "x"], "nonsense"),
        (["nonsense"], "nonsense"),
    ):
        result = runtime.call(*arguments)
        assert result.code != 0, result.describe()
        assert wanted in (result.stderr.decode() + result.error), result.describe()


def test_a_bundle_that_is_none_is_refused(box: Box, runtime: Runtime) -> None:
    """No directory, no config.json, no JSON: one line that names it; nothing is left."""
    missing = runtime.call("create", "--bundle", "/nonexistent/bundle", "rvt-none")
    assert missing.code == 1
    assert "/nonexistent/bundle" in missing.error
    empty = f"{runtime.scratch}/empty-bundle"
    os.makedirs(empty)
    without = runtime.call("create", "--bundle", empty, "rvt-none")
    assert without.code == 1
    assert "config.json" in without.error
    with open(f"{empty}/config.json", "w", encoding="utf-8") as file:
        file.write('{"ociVersion": "1.0.2", ')
    broken = runtime.call("create", "--bundle", empty, "rvt-none")
    assert broken.code == 1
    assert broken.error
    assert runtime.ids() == []


def test_the_log_has_json_lines(box: Box, runtime: Runtime) -> None:
    """--log-format json: each line has level, msg and time; errors are there and on stderr. Text is logfmt."""
    path = f"{runtime.scratch}/some.log"
    process.call(runtime.argv("state", UNKNOWN, log=path)).expect(1)
    process.call(runtime.argv("kill", UNKNOWN, "9", log=path)).expect(1)
    records = read_log(path)
    assert len(records) == 2, "a second command appends"
    for record in records:
        assert record["level"] == "error"
        assert record["msg"] == "container does not exist"
        datetime.datetime.fromisoformat(record["time"].replace("Z", "+00:00"))

    text = f"{runtime.scratch}/text.log"
    process.call([runtime.path, "--root", runtime.root, "--log", text, "state", UNKNOWN]).expect(1)
    with open(text, encoding="utf-8") as file:
        line = file.read()
    assert 'level=error msg="container does not exist"' in line
    assert line.startswith("time=")
    bad = process.call([runtime.path, "--root", runtime.root, "--log-format", "xml", "state", UNKNOWN])
    assert bad.code == 1
    assert b"xml" in bad.stderr


def test_five_containers_created_at_once_all_run(box: Box, runtime: Runtime) -> None:
    """Concurrent creates neither fail nor mix up: each container gets its own hostname, output and pid."""
    containers = [box.sh("hostname; exec sleep 1000") for _ in range(5)]
    for number, container in enumerate(containers):
        container.bundle.config["hostname"] = f"host{number}"
    started = [(container, container.begin("--detach", command="run")) for container in containers]
    for container, command in started:
        container.created(command, timeout=runtime.timeout * 2).expect(0)
    assert sorted(runtime.ids()) == sorted(container.id for container in containers)
    for number, container in enumerate(containers):
        container.wait_stdout(f"host{number}\n".encode())
    assert len({container.init_pid for container in containers}) == 5
    deletes = [runtime.start("delete", "--force", container.id) for container in containers]
    for delete in deletes:
        delete.wait(runtime.timeout).expect(0)
    assert runtime.ids() == []


def test_the_same_id_created_twice_at_once_gives_one_container(box: Box, runtime: Runtime) -> None:
    """Of two creates of one id exactly one succeeds; the other says that it exists already and spoils nothing."""
    cid = f"rvt{os.getpid()}-twice"
    pair = [box.idle() for _ in range(2)]
    for container in pair:
        container.id = cid
    commands = [container.begin() for container in pair]
    results = [container.created(command) for container, command in zip(pair, commands, strict=True)]
    assert sorted(result.code for result in results) == [0, 1]
    loser = next(result for result in results if result.code == 1)
    assert "container with given ID already exists" in loser.error
    assert runtime.ids() == [cid]
    pair[0].start()
    assert pair[0].state()["status"] == "running"
    pair[0].delete("--force")


def test_two_deletes_at_once_are_safe(box: Box, runtime: Runtime) -> None:
    """Concurrent `delete --force`: both end, none hangs, the container is gone."""
    container = box.sleeper()
    both = [runtime.start("delete", "--force", container.id) for _ in range(2)]
    codes = [command.wait(runtime.timeout).code for command in both]
    assert 0 in codes
    assert runtime.ids() == []


def test_kill_and_delete_during_start_are_safe(box: Box, runtime: Runtime) -> None:
    """kill -9 and delete --force while `start` is at work: every command ends, and the container is gone."""
    container = box.idle()
    container.create()
    commands = [
        runtime.start("start", container.id),
        runtime.start("kill", container.id, "9"),
        runtime.start("state", container.id),
        runtime.start("delete", "--force", container.id),
    ]
    for command in commands:
        command.wait(runtime.timeout)
    container.delete("--force")
    assert runtime.ids() == []


def test_state_and_list_are_quick_while_many_ask(box: Box, runtime: Runtime) -> None:
    """Twenty `state` calls at once, as a kubelet does: all agree and none waits for another for long."""
    container = box.sleeper()
    begun = time.monotonic()
    asked = [runtime.start("state", container.id) for _ in range(20)]
    for command in asked:
        assert json.loads(command.wait(30).expect(0).stdout)["status"] == "running"
    assert time.monotonic() - begun < 20


def test_delete_takes_the_container_away_though_its_bundle_is_gone(box: Box, runtime: Runtime) -> None:
    """An engine may remove the bundle first."""
    container = box.sleeper()
    os.rename(container.bundle.path, container.bundle.path + ".moved")
    runtime.ok("delete", "--force", container.id)
    assert runtime.ids() == []
    os.rename(container.bundle.path + ".moved", container.bundle.path)


def test_version_names_the_runtime_and_the_spec(runtime: Runtime) -> None:
    """`--version`: podman info shows it; a line with the spec's version."""
    lines = process.call([runtime.path, "--version"]).expect(0).text.splitlines()
    assert lines[0].startswith(f"{runtime.name.split('.')[0]} version ")
    assert any(line.startswith("spec: 1.") for line in lines)


def test_pid_file_is_written_whole(box: Box) -> None:
    """The pid-file holds the decimal pid, no newline, and is there when create returns (go-runc parses it bare)."""
    container = box.idle()
    container.create()
    with open(container.pid_file, "rb") as file:
        content = file.read()
    assert content == str(container.init_pid).encode()
    assert sorted(name for name in os.listdir(container.bundle.path) if "pid" in name) == ["init.pid"], (
        "no temporary file"
    )


def test_the_pid_is_in_the_containers_cgroup_and_namespaces(box: Box) -> None:
    """Engines read the host cgroup of the pid for stats, and tell containers apart by its namespaces."""
    from framework import host

    container = box.sleeper()
    path = host.cgroups_of(container.init_pid)
    assert path["pids"] == container.bundle.linux["cgroupsPath"]
    assert path["memory"] == container.bundle.linux["cgroupsPath"]
    for kind in ("net", "uts", "ipc", "mnt", "pid"):
        assert host.namespace(container.init_pid, kind) != host.namespace("self", kind), kind
    assert "sh" in process.command_line(container.init_pid).split()[0], "ps on the host shows the container's command"
    assert container_title(container)


def container_title(container: Container) -> bool:
    """Whether /proc/PID/cmdline is what the container runs."""
    return process.command_line(container.init_pid) == " ".join(container.bundle.process["args"])


@pytest.mark.capability("snapshot", "a template has the crun that waits")
@pytest.mark.only("runvm", "crun is in its guest")
def test_the_first_container_is_made_by_the_crun_that_waited_for_it(box: Box, runtime: Runtime) -> None:
    """The template holds a `crun create` that waits for its config.json; a start by it must be no other than any."""
    container = box.idle()
    container.bundle.config["annotations"] = {f"org.example.{number}": "x" * 1000 for number in range(400)}
    container.launch()
    in_guest = ("debug", "shell", container.id, "ls", "/run/crun")
    assert runtime.ok(*in_guest).stdout.split() == [b"=first"]
    assert container.sh("echo $0") == "sh"
    container.kill("KILL")
    container.wait_status("stopped")
    assert container.wait() == 137
    container.delete()
    assert container.id not in runtime.ids()


@pytest.mark.only("runvm", "crun is in its guest")
def test_a_container_with_a_terminal_is_made_by_a_crun_of_its_own(box: Box, runtime: Runtime) -> None:
    container = box.sh("test -t 0 && echo terminal; sleep 100")
    container.bundle.config["process"]["terminal"] = True
    terminal = container.terminal(lambda path: container.create("--console-socket", path))
    container.start()
    terminal.expect(b"terminal")
    assert runtime.ok("debug", "shell", container.id, "ls", "/run/crun").stdout.split() == [container.id.encode()]
