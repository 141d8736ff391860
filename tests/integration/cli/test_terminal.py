"""Terminals: by --console-socket for a detached container, and the caller's own for `run`."""

from __future__ import annotations

import os
import signal
import stat
import time
from typing import TYPE_CHECKING

import pytest

from framework.process import reap, wait_until
from framework.terminal import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Box, Runtime
    from framework.terminal import Terminal


def test_console_socket_gives_a_terminal_with_echo_size_signals_and_job_control(box: Box) -> None:
    """A shell at the terminal that came by --console-socket: echo, size at start and later, ctrl-C, ctrl-Z, fg."""
    container = box("sh", "-i")
    container.bundle.process["terminal"] = True
    container.bundle.process["consoleSize"] = {"height": 31, "width": 97}
    container.bundle.process["env"].append("PS1=$ ")
    terminal = container.terminal(lambda path: container.create("--console-socket", path))
    assert container.status == "created"
    container.start()
    terminal.expect(b"$ ")

    terminal.send(b"stty size; echo en''d\n")
    shown = terminal.expect(b"end\r\n")
    assert b"stty size; echo en''d\r\n" in shown, "typed characters are echoed"
    assert b"31 97\r\n" in shown, "config.json's consoleSize holds at start"

    terminal.send(b"tty; test -t 0 && test -t 1 && test -t 2 && echo ye''s\n")
    shown = terminal.expect(b"yes\r\n")
    assert b"/dev/pts/0" in shown or b"/dev/console" in shown
    terminal.expect(b"$ ")

    watch_a_resize_then_interrupt(terminal)

    terminal.send(b"sleep 101\n")
    terminal.expect(b"sleep 101\r\n")
    time.sleep(0.5)
    terminal.send(b"\x1a")
    terminal.expect(b"Stopped")
    terminal.send(b"jobs; echo lis''ted\n")
    assert b"sleep 101" in terminal.expect(b"listed\r\n")
    terminal.send(b"fg\n")
    terminal.expect(b"sleep 101\r\n")
    time.sleep(0.5)
    terminal.send(b"\x03")
    terminal.expect(b"$ ")

    terminal.send(b"exit 3\n")
    assert container.wait() == 3
    terminal.read_to_end(timeout=10)


def watch_a_resize_then_interrupt(terminal: Terminal) -> None:
    """A foreground program is told of a new window size, and ctrl-C ends it."""
    terminal.send(b'sh -c \'trap "stty size" WINCH; echo se""t; while :; do sleep 0.05; done\'\n')
    terminal.expect(b"set\r\n")
    terminal.resize(rows=40, columns=120)
    terminal.expect(b"40 120\r\n")
    terminal.send(b"\x03")
    terminal.expect(b"^C")
    terminal.send(b"echo co''de $?\n")
    terminal.expect(b"code 130\r\n")


def test_a_large_output_to_a_terminal_arrives_whole(box: Box) -> None:
    """Output of a megabyte through the pty, though init ends right after; nothing is lost."""
    container = box.sh("stty -opost; seq 1 150000; echo finished")
    container.bundle.process["terminal"] = True
    terminal = container.terminal(lambda path: container.create("--console-socket", path))
    container.start()
    data = terminal.expect(b"finished\n", timeout=60)
    assert data == b"".join(b"%d\n" % number for number in range(1, 150001)) + b"finished\n"
    assert container.wait() == 0


def test_raw_bytes_pass_a_terminal_in_raw_mode(box: Box) -> None:
    """In raw mode every byte value passes both ways: editors and zmodem depend on it."""
    container = box.sh("stty raw -echo; echo go; head -c 256 | xxd -p | tr -d '\\n'; echo .")
    container.bundle.process["terminal"] = True
    terminal = container.terminal(lambda path: container.create("--console-socket", path))
    container.start()
    terminal.expect(b"go\n")
    terminal.send(bytes(range(256)))
    assert terminal.expect(b".") == bytes(range(256)).hex().encode() + b"."
    assert container.wait() == 0


def test_hanging_up_sends_sighup(box: Box) -> None:
    """When the engine closes the master, the foreground group gets SIGHUP, as at a real terminal."""
    container = box.sh("trap 'exit 21' HUP; echo ready; while :; do sleep 0.1; done")
    container.bundle.process["terminal"] = True
    terminal = container.terminal(lambda path: container.create("--console-socket", path))
    container.start()
    terminal.expect(b"ready")
    terminal.close()
    assert container.wait(20) == 21


def test_a_terminal_without_console_socket_is_refused(box: Box, runtime: Runtime) -> None:
    """create and run --detach with a terminal need --console-socket, and it needs a terminal: said at once."""
    container = box("true")
    container.bundle.process["terminal"] = True
    refused = container.try_create()
    assert refused.code == 1
    assert "cannot allocate tty if runc will detach without setting console socket" in refused.error.replace(
        "runvm", "runc"
    )
    container.bundle.process["terminal"] = False
    other = container.try_create("--console-socket", f"{runtime.scratch}/nowhere.sock")
    assert other.code == 1
    assert "console socket" in other.error
    container.bundle.process["terminal"] = True
    absent = container.try_create("--console-socket", f"{runtime.scratch}/nowhere.sock")
    assert absent.code == 1
    waiting = container.try_create("--console-socket", f"{runtime.scratch}/nowhere.sock", command="run")
    assert waiting.code == 1
    assert "will not detach or allocate tty" in waiting.error
    assert runtime.ids() == []


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    """Sessions to be closed at the test's end."""
    opened: list[Session] = []
    yield opened
    for session in opened:
        session.close()


def test_run_at_the_callers_terminal_is_raw_sized_and_restored(
    box: Box, runtime: Runtime, sessions: list[Session]
) -> None:
    """`run` with terminal: true uses the caller's own tty raw, with its size and its changes; then it is as before."""
    container = box("sh", "-i")
    container.bundle.process["terminal"] = True
    container.bundle.process["env"].append("PS1=$ ")
    container.bundle.save()
    argv = runtime.argv("run", "--bundle", container.bundle.path, container.id)
    session = Session(argv, rows=33, columns=99)
    sessions.append(session)
    before = session.settings()
    terminal = session.terminal
    terminal.expect(b"$ ", timeout=runtime.timeout)
    assert session.settings() != before, "raw while it runs: the container's terminal does the echo"
    terminal.send(b"stty size; echo en''d\n")
    assert b"33 99\r\n" in terminal.expect(b"end\r\n")
    watch_a_resize_then_interrupt(terminal)
    terminal.send(b"exit 12\n")
    assert session.wait() == 12
    assert session.settings() == before
    assert runtime.ids() == []


def test_what_is_typed_before_the_terminal_is_raw_arrives(box: Box, runtime: Runtime, sessions: list[Session]) -> None:
    """A person, or a script, doesn't wait for `run` and `exec` to be ready."""
    container = box("sh", "-c", "read line; echo got ${line}-1; exec sleep 1000")
    container.bundle.process["terminal"] = True
    container.bundle.save()
    for argv in (
        runtime.argv("run", "--bundle", container.bundle.path, container.id),
        runtime.argv("exec", "--tty", container.id, "sh", "-c", "read line; echo got ${line}-1"),
    ):
        session = Session(argv)
        sessions.append(session)
        session.terminal.send(b"typed\n")
        session.terminal.expect(b"got typed-1", timeout=runtime.timeout)


def test_the_callers_terminal_is_restored_when_the_container_is_killed(
    box: Box, runtime: Runtime, sessions: list[Session]
) -> None:
    """A container that SIGKILL ends leaves the caller's terminal as it found it, and 137."""
    container = box.sh("echo ready; exec sleep 1000")
    container.bundle.process["terminal"] = True
    container.bundle.save()
    session = Session(runtime.argv("run", "--bundle", container.bundle.path, container.id))
    sessions.append(session)
    before = session.settings()
    session.terminal.expect(b"ready", timeout=runtime.timeout)
    container.kill("KILL")
    assert session.wait() == 137
    assert session.settings() == before


def test_exec_at_a_terminal(box: Box, runtime: Runtime, sessions: list[Session]) -> None:
    """`exec -t` at the caller's tty, and `exec --tty --detach --console-socket`: a terminal of its own each."""
    container = box.sleeper()
    session = Session(
        runtime.argv("exec", "--tty", container.id, "sh", "-c", "stty size; tty; read x; echo got-$x; exit 8")
    )
    sessions.append(session)
    before = session.settings()
    session.terminal.expect(b"24 80\r\n", timeout=runtime.timeout)
    assert b"/dev/pts/" in session.terminal.expect(b"\n")
    session.terminal.send(b"word\r")
    session.terminal.expect(b"got-word\r\n")
    assert session.wait() == 8
    assert session.settings() == before

    refused = container.exec("true", flags=("--tty", "--detach"))
    assert refused.code == 255
    assert "will detach without setting console socket" in refused.error
    refused = container.exec("true", flags=("--tty", "--console-socket", f"{runtime.scratch}/nowhere.sock"))
    assert refused.code == 255
    assert "will not detach or allocate tty" in refused.error
    pid_file = f"{container.bundle.path}/exec.pid"
    flags = ("--tty", "--detach", "--pid-file", pid_file)
    terminal = container.terminal(lambda path: container.exec("sh", flags=(*flags, "--console-socket", path)).expect(0))
    terminal.send(b"echo he''re; exit 4\n")
    terminal.expect(b"here\r\n")
    with open(pid_file, encoding="ascii") as file:
        assert reap(int(file.read()), 20) == 4
    terminal.read_to_end(10)


def test_signals_to_the_caller_of_a_terminal_reach_the_process(
    box: Box, runtime: Runtime, sessions: list[Session]
) -> None:
    """Any signal, not those of a keyboard alone: else it would end the caller and leave its terminal raw."""
    container = box.sleeper()
    script = "trap 'echo us''r; exit 6' USR1; echo rea''dy; while :; do sleep 0.1; done"
    session = Session(runtime.argv("exec", "--tty", container.id, "sh", "-c", script))
    sessions.append(session)
    before = session.settings()
    session.terminal.expect(b"ready\r\n", timeout=runtime.timeout)
    os.kill(session.pid, signal.SIGUSR1)
    session.terminal.expect(b"usr\r\n")
    assert session.wait() == 6
    assert session.settings() == before


def test_dev_console_is_the_terminal_of_a_container(box: Box) -> None:
    """With a terminal /dev/console is there, writing to it shows at the terminal, and stdin's owner is the user."""
    container = box.sh("echo to-console >/dev/console; stat -c '%u %G' /dev/pts/0; test -c /dev/console && echo cha''r")
    container.bundle.process["terminal"] = True
    container.bundle.process["user"] = {"uid": 1000, "gid": 1000}
    terminal = container.terminal(lambda path: container.create("--console-socket", path))
    container.start()
    shown = terminal.expect(b"char\r\n")
    assert b"to-console\r\n" in shown
    assert b"1000 tty\r\n" in shown
    assert container.wait() == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_a_terminal_prints_into_a_pipe_has_plain_newlines(
    box: Box, runtime: Runtime, sessions: list[Session]
) -> None:
    """`x=$(run c)` and `x=$(exec -t c …)` in the foreground read well; at the terminal itself lines are laid out."""
    container = box.sh("printf 'one\\ntwo\\n'; exec sleep 1000")
    container.bundle.process["terminal"] = True
    container.bundle.save()
    run = " ".join(runtime.argv("run", "--bundle", container.bundle.path, container.id))
    first = Session(["sh", "-c", f"{run} | od -An -c"])
    sessions.append(first)
    wait_until(lambda: container.id in runtime.ids(), timeout=runtime.timeout, what="the container", interval=0.3)
    container.wait_status("running", timeout=runtime.timeout)
    execute = " ".join(runtime.argv("exec", "--tty", container.id))
    second = Session(["sh", "-c", f"{execute} sh -c 'sleep 0.5; echo three; echo four' | od -An -c"])
    sessions.append(second)
    assert b"t   h   r   e   e  \\n   f   o   u   r  \\n" in second.terminal.expect(b"r  \\n", timeout=runtime.timeout)
    container.kill("KILL")
    assert b"o   n   e  \\n   t   w   o  \\n" in first.terminal.expect(b"w   o  \\n", timeout=runtime.timeout)
