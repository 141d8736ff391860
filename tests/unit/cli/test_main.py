"""The command as a process: exit codes, where messages go, and that it works in the odd surroundings of engines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runvm import __main__, log
from runvm.cli import globals as given
from runvm.cli.grammar import Args, parse
from runvm.errors import HostError, RunvmError, UnsupportedError, UsageError

SOURCE = str(Path(__file__).parents[3] / "src")
# As the installed script does it
START = f"import sys; sys.path.insert(0, {SOURCE!r}); from runvm.__main__ import entry; sys.exit(entry())"


def runvm(*argv: str, cwd: str | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command with nothing in its environment, unless *env* says otherwise."""
    command = [sys.executable, "-SI", "-B", "-c", START, *argv]
    return subprocess.run(
        command,
        cwd=cwd,
        env=env or {},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


# --- exit codes: the table of __main__'s docstring


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--version"], 0, ""),
        (["features"], 0, ""),
        ([], 0, ""),
        (["--help"], 0, ""),
        (["h"], 0, ""),
        (["help", "exec"], 0, ""),
        (["nosuch"], 3, "No help topic for 'nosuch'"),
        (["stat"], 3, "did you mean state?"),
        (["help", "nosuch"], 3, "No help topic for 'nosuch'"),
        (["--nosuch", "list"], 1, "flag provided but not defined: --nosuch"),
        (["list", "--nosuch"], 1, "flag provided but not defined: --nosuch"),
        (["list", "extra"], 1, '"list" requires exactly 0 argument(s)'),
        (["state"], 1, '"state" requires exactly 1 argument(s)'),
        (["state", ".."], 1, "invalid container ID format"),
        (["state", ""], 1, "container id cannot be empty"),
        (["--log-format", "xml", "list"], 1, 'invalid value "xml" for flag --log-format'),
        (["exec"], 1, '"exec" requires a minimum of 1 argument(s)'),
        (["exec", "..", "ls"], 255, "invalid container ID format"),
        (["checkpoint", "--image-path", "/x", "c1"], 1, "container does not exist"),
        (["checkpoint", "--pre-dump", "c1"], 1, "--pre-dump is not supported by runvm"),
        (["restore", "--lazy-pages", "c1"], 1, "--lazy-pages is not supported by runvm"),
        (["restore"], 1, '"restore" requires exactly 1 argument(s)'),
        (["spec", "--bundle", "/nonexistent"], 1, "/nonexistent/config.json: no such file or directory"),
    ],
)
def test_exit_codes(argv: list[str], code: int, said: str) -> None:
    done = runvm(*argv)
    assert done.returncode == code, done
    assert said in done.stderr
    assert bool(done.stderr) == (code != 0)
    assert bool(done.stdout) == (code == 0)


def test_an_unknown_container(root: str) -> None:
    done = runvm("--root", root, "state", "nosuch")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "runvm: container does not exist\n")


def test_an_empty_root(root: str) -> None:
    """Reading makes no directories."""
    assert runvm("--root", root, "list").stdout == "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
    assert runvm("--root", root, "list", "-f", "json").stdout == "[]\n"
    assert runvm("--root", root, "list", "-q").stdout == ""
    assert not os.path.exists(root)


def test_version_is_what_engines_parse() -> None:
    """dockerd takes the version from the first line and what `spec: ` precedes; podman shows the text."""
    lines = runvm("--version").stdout.splitlines()
    assert lines[0].split()[:2] == ["runvm", "version"]
    assert lines[1].startswith("spec: 1.")
    assert runvm("-v", "list").stdout.splitlines() == lines


# --- messages


def test_a_message_is_in_the_log_and_on_stderr(tmp_path: Path, root: str) -> None:
    """containerd takes the last error of the log, podman takes stderr."""
    path = tmp_path / "log.json"
    done = runvm("--root", root, "--log", str(path), "--log-format", "json", "state", "nosuch")
    assert done.stderr == "runvm: container does not exist\n"
    line = json.loads(path.read_text())
    assert (line["level"], line["msg"]) == ("error", "container does not exist")


def test_wrong_usage_is_in_the_log_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert runvm(f"--log=file:{path}", "state").returncode == 1
    assert "requires exactly 1" in path.read_text()


def test_json_on_stderr_without_a_log_file(root: str) -> None:
    """As runc and crun do it."""
    done = runvm("--root", root, "--log-format", "json", "state", "nosuch")
    assert json.loads(done.stderr)["msg"] == "container does not exist"
    assert done.stderr.startswith('{"level":"error","msg":"container does not exist","time":"'), (
        "Go's spacing and order"
    )


def test_an_id_may_begin_with_a_dash(root: str) -> None:
    """Two dashes after the command's name end its flags, as with runc."""
    done = runvm("--root", root, "state", "--", "-x")
    assert (done.returncode, done.stderr) == (1, "runvm: container does not exist\n")


def test_the_directory_of_the_log_may_be_gone(root: str) -> None:
    done = runvm("--root", root, "--log", "/nonexistent/log", "state", "nosuch")
    assert (done.returncode, done.stderr) == (1, "runvm: container does not exist\n")


def test_a_mistake_in_the_configuration_is_named(tmp_path: Path, root: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text("vcpu = 2\n")
    done = runvm("--root", root, "list", env={"RUNVM_CONFIG": str(file)})
    assert done.returncode == 1
    assert str(file) in done.stderr
    assert "vcpu" in done.stderr
    assert runvm("--version", env={"RUNVM_CONFIG": str(file)}).returncode == 0


# --- surroundings


@pytest.fixture
def removed(tmp_path: Path) -> str:
    """A directory that a command is started in and that is gone by then."""
    return str(tmp_path / "removed")


def in_removed_directory(directory: str, *argv: str) -> subprocess.CompletedProcess[str]:
    code = f"import os; os.mkdir({directory!r}); os.chdir({directory!r}); os.rmdir({directory!r}); {START}"
    command = [sys.executable, "-SI", "-B", "-c", code, *argv]
    return subprocess.run(command, env={}, capture_output=True, text=True, timeout=30, check=False)


def test_the_working_directory_may_be_gone(removed: str, root: str) -> None:
    """containerd's `kill` and `delete` come from the bundle after it has been removed."""
    assert (
        in_removed_directory(removed, "--root", root, "state", "nosuch").stderr == "runvm: container does not exist\n"
    )
    assert in_removed_directory(removed, "--root", root, "list", "-q").returncode == 0


def test_what_is_relative_to_a_directory_that_is_gone(removed: str) -> None:
    done = in_removed_directory(removed, "spec")
    assert done.returncode == 1
    assert done.stderr == (
        'runvm: "config.json" is relative to the current directory, which no longer exists: give an absolute path\n'
    )


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_standard_streams_may_be_closed(closed: tuple[int, ...], tmp_path: Path, root: str) -> None:
    """No file that the command opens must become its stdin, stdout or stderr."""
    path = tmp_path / "log"
    code = (
        f"import os\nfor fd in {closed!r}: os.close(fd)\n"
        f"import sys; sys.path.insert(0, {SOURCE!r}); from runvm.__main__ import main\n"
        f"code = main(['--root', {root!r}, '--log', {str(path)!r}, 'state', 'nosuch'])\n"
        "code += 10 * main(['features'])\n"
        f"assert all(os.readlink(f'/proc/self/fd/{{fd}}') == '/dev/null' for fd in {closed!r})\n"
        "os._exit(code)"
    )
    done = subprocess.run([sys.executable, "-SI", "-B", "-c", code], capture_output=True, timeout=30, check=False)
    assert done.returncode == 1, done
    assert path.read_text().count("container does not exist") == 1


@pytest.mark.parametrize("argv", [["features"], ["--help"], ["config"]])
def test_a_reader_that_goes_away_is_no_error(argv: list[str]) -> None:
    """`runvm list | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-SI", "-B", "-c", START, *argv]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_arguments_may_be_no_utf8(root: str) -> None:
    command: list[str | bytes] = [sys.executable, "-SI", "-B", "-c", START, "--root", root, "state", b"\xff\xfe"]
    done = subprocess.run(command, env={"LC_ALL": "C.UTF-8"}, capture_output=True, timeout=30, check=False)
    assert done.returncode == 1
    assert b"invalid container ID format" in done.stderr


# --- how what a verb raises ends


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (HostError("no QEMU", do="apt install it"), 1, "runvm: no QEMU: apt install it\n"),
        (RunvmError("failed", details="line 1\nline 2"), 1, "runvm: failed: line 1\nline 2\n"),
        (RunvmError("failed", exit_code=77), 77, "runvm: failed\n"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), 1, "runvm: /a/b: no such file or directory\n"),
        (PermissionError(13, "Permission denied", b"/a"), 1, "runvm: /a: permission denied\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, "runvm: broken pipe\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def verb(*_: object) -> int:
        raise error

    monkeypatch.setattr("runvm.cli.features.run", verb)
    assert __main__.main(["features"]) == code
    assert capfd.readouterr().err == said


def test_a_bug_is_reported_with_where_it_is(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def verb(*_: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("runvm.cli.features.run", verb)
    assert __main__.main(["features"]) == 1
    said = capfd.readouterr().err
    assert said.startswith("runvm: internal error: ZeroDivisionError: oops")
    assert "test_main.py" in said


# --- the global flags


def flags(*argv: str) -> Args:
    return parse(given.GLOBAL, [*argv, "list"])


def test_the_context_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNVM_CONFIG", "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    ctx = given.context(flags(), read_config=False)
    assert (ctx.root, ctx.cgroup_manager, ctx.rootless) == ("/run/runvm/containers", "cgroupfs", "auto")


@pytest.mark.parametrize(
    ("argv", "manager"),
    [
        (["--systemd-cgroup"], "systemd"),
        (["--cgroup-manager", "systemd"], "systemd"),
        (["--cgroup-manager=disabled"], "disabled"),
        (["--systemd-cgroup", "--cgroup-manager=cgroupfs"], "cgroupfs"),
    ],
)
def test_cgroup_managers(argv: list[str], manager: str) -> None:
    assert given.context(flags(*argv), read_config=False).cgroup_manager == manager


def test_without_root_state_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    ctx = given.context(flags(), read_config=False)
    assert (ctx.root, ctx.config.state_dir) == ("/run/user/1000/runvm/containers", "/run/user/1000/runvm")
    assert given.context(flags("--root", "/r/"), read_config=False).root == "/r"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert given.context(flags(), read_config=False).root == "/run/runvm/containers"


def test_the_log_is_the_flags_then_the_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text('log_file = "/var/log/runvm"\nlog_format = "json"\nlog_level = "debug"\n')
    monkeypatch.setenv("RUNVM_CONFIG", str(file))
    made = log.Log()
    monkeypatch.setattr(given, "log", made)
    given.context(flags(), read_config=True)
    assert (made.path, made.format, made.debug_on) == ("/var/log/runvm", "json", True)
    given.context(flags("--log", "/l", "--log-format", "text"), read_config=True)
    assert (made.path, made.format) == ("/l", "text")
    for level, debug, errors in (("debug", True, False), ("warning", False, False), ("error", False, True)):
        given.context(flags("--log-level", level), read_config=True)
        assert (made.debug_on, made.errors_only) == (debug, errors)


@pytest.mark.parametrize(("destination", "path"), [("/a/b", "/a/b"), ("file:/a", "/a"), ("/a:b", "/a:b"), ("", "")])
def test_log_destinations(destination: str, path: str) -> None:
    assert given.log_path(destination) == path


@pytest.mark.parametrize("destination", ["journald:x", "syslog:x"])
def test_log_destinations_of_crun_that_are_refused(destination: str) -> None:
    with pytest.raises(UnsupportedError, match="is not supported"):
        given.log_path(destination)


def test_unknown_values_of_globals() -> None:
    with pytest.raises(UsageError, match="cgroup-manager"):
        flags("--cgroup-manager", "none")


def test_a_trace_has_each_step_with_time_and_process(tmp_path: Path, root: str) -> None:
    """RUNVM_TRACE names a file that steps are appended to; a file that can't be opened is no failure."""
    trace = tmp_path / "trace"
    assert runvm("--root", root, "list", env={"RUNVM_TRACE": str(trace)}).returncode == 0
    steps = [line.split(" ", 2) for line in trace.read_text().splitlines()]
    assert [words for _, _, words in steps] == [
        "command: arguments read",
        "command: settings read",
        "command: done",
    ]
    assert sorted(float(when) for when, _, _ in steps) == [float(when) for when, _, _ in steps]
    assert len({pid for _, pid, _ in steps}) == 1
    assert runvm("--root", root, "list", env={"RUNVM_TRACE": str(tmp_path / "no" / "trace")}).returncode == 0
