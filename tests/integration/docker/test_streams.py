"""What goes in and out of containers: attach and detach, several readers, large and binary data, ends of streams."""

from __future__ import annotations

import hashlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

from framework.docker import IMAGE
from framework.process import wait_until
from framework.terminal import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.docker import Dockerd

NAME = "talks"


@pytest.fixture(scope="module", autouse=True)
def running(docker: Dockerd) -> Iterator[None]:
    """A container that these tests share."""
    docker.detached("--name", NAME, IMAGE, "sleep", "100000")
    yield
    docker.ok("rm", "--force", NAME)


def test_detach_and_attach_at_a_terminal(docker: Dockerd) -> None:
    """ctrl-p ctrl-q leaves `run -it` with 0 and the shell running; `attach` with other keys finds it as it was."""
    session = Session(docker.argv("run", "-it", "--name", "left", "--env", "PS1=$ ", IMAGE, "sh"))
    try:
        session.terminal.expect(b"$ ", timeout=docker.runtime.timeout)
        session.terminal.send(b"kept=before\n")
        session.terminal.expect(b"$ ")
        session.terminal.send(b"\x10\x11")
        assert session.wait(30) == 0
    finally:
        session.close()
    assert docker.inspect("left")["State"]["Running"]
    session = Session(docker.argv("attach", "--detach-keys", "ctrl-x,d", "left"), rows=33, columns=77)
    try:
        session.terminal.send(b"\n")
        session.terminal.expect(b"$ ")
        session.terminal.send(b"echo is $kept; stty size\n")
        session.terminal.expect(b"is before\r\n33 77\r\n")
        session.terminal.send(b"\x18d")
        session.terminal.expect(b"read escape sequence")
        session.wait(30)
        assert docker.inspect("left")["State"]["Running"]
    finally:
        session.close()
    session = Session(docker.argv("attach", "left"))
    try:
        session.terminal.send(b"\nexit 5\n")
        assert session.wait(30) == 5
    finally:
        session.close()


def test_several_readers_of_one_container(docker: Dockerd) -> None:
    """Three attached clients get each line; one that is killed holds up neither the others nor the container."""
    script = "while read line; do echo $line; done; echo end"
    docker.ok("create", "--interactive", "--name", "heard", IMAGE, "sh", "-c", script)
    docker.ok("start", "heard")
    readers = [docker.start_client("attach", "--no-stdin", "heard") for _ in range(3)]
    wait_until(lambda: _attached(docker, 3), timeout=30, what="three clients")
    readers[0].signal(signal.SIGKILL)
    lines = b"".join(b"line %d\n" % number for number in range(2000))
    assert docker.call("attach", "heard", stdin=lines).stdout == lines + b"end\n"
    for reader in readers[1:]:
        assert reader.wait(60).stdout == lines + b"end\n"
    readers[0].wait(10)


def _attached(docker: Dockerd, count: int) -> bool:
    events = docker.ok(
        "events", "--since", "60s", "--until", "0s", "--filter", "event=attach", "--filter", "container=heard"
    )
    return len(events.splitlines()) >= count


def test_megabytes_of_any_bytes_both_ways(docker: Dockerd) -> None:
    """16 MiB of random bytes through `exec -i`, unchanged, and 64 MiB out of it."""
    data = os.urandom(16 << 20)
    assert docker.call("exec", "-i", NAME, "cat", stdin=data, timeout=300).stdout == data
    many = docker.call("exec", NAME, "sh", "-c", "yes 0123456789abcde | head -c 67108864", timeout=300).stdout
    assert hashlib.sha256(many).digest() == hashlib.sha256(b"0123456789abcde\n" * (4 << 20)).digest()


def test_the_ends_of_streams(docker: Dockerd) -> None:
    """The end of input reaches the program; one that reads none ends all the same; a closed output ends its writer."""
    assert docker.call("exec", "-i", NAME, "wc", "-c", stdin=b"x" * 100_000).text == "100000"
    assert docker.call("exec", "-i", NAME, "sh", "-c", "exec <&-; echo closed", stdin=b"x" * 1_000_000).text == "closed"
    assert docker.call("exec", "-i", NAME, "true", stdin=b"x" * 1_000_000).code == 0
    assert docker.call("exec", NAME, "cat").stdout == b""
    # Output that is closed by the program, while it goes on
    assert docker.call("exec", NAME, "sh", "-c", "echo first; exec >&- 2>&-; sleep 1; exit 3").code == 3
    # A child that keeps the output open outlives the process, whose end is the exec's end
    result = docker.call("exec", NAME, "sh", "-c", "sleep 1000 & echo parent", timeout=60)
    assert (result.code, result.text) == (0, "parent")


def test_a_client_that_goes_away(docker: Dockerd) -> None:
    """A killed `exec` client leaves its process running, and the container in order."""
    client = docker.start_client(
        "exec", NAME, "sh", "-c", "echo up; while :; do echo more; sleep 0.2; done; : left-alone"
    )
    assert client.popen.stdout is not None
    assert client.popen.stdout.read(3) == b"up\n"
    client.kill()
    assert docker.call("exec", NAME, "echo", "fine").text == "fine"
    assert "left-alone" in docker.ok("exec", NAME, "ps", "-o", "args")
    docker.ok("exec", NAME, "sh", "-c", "kill $(ps -o pid,args | awk '/[l]eft-alone/ {print $1}')")


@pytest.mark.parametrize("driver", ["json-file", "local", "none"])
def test_log_drivers(docker: Dockerd, driver: str) -> None:
    """What was written is in the logs of the drivers that can be read; stdout and stderr apart, --tail, timestamps."""
    name = f"logged-{driver}"
    flags = ("--log-driver", driver, *(("--log-opt", "max-size=1m") if driver != "none" else ()))
    docker.ok("run", "--name", name, *flags, IMAGE, "sh", "-c", "echo one; echo two >&2; sleep 0.1; printf three")
    result = docker.call("logs", name)
    if driver == "none":
        assert result.code == 1
        return
    assert (result.stdout, result.stderr) == (b"one\nthree", b"two\n")
    assert docker.call("logs", "--tail", "1", "--timestamps", name).text.endswith("Z three")


def test_attached_streams_can_be_chosen(docker: Dockerd) -> None:
    """run -a: only what is asked for is shown, and input only where stdin is; the logs have it all."""
    script = "echo out; echo err >&2; cat"
    result = docker.call("run", "--name", "chosen", "-a", "stderr", IMAGE, "sh", "-c", script)
    assert (result.code, result.stdout, result.stderr) == (0, b"", b"err\n")
    logs = docker.call("logs", "chosen")
    assert (logs.stdout, logs.stderr) == (b"out\n", b"err\n")
    result = docker.run("-i", "-a", "stdin", "-a", "stdout", IMAGE, "sh", "-c", script, stdin=b"input")
    assert (result.stdout, result.stderr) == (b"out\ninput", b"")


def test_a_shell_for_work(docker: Dockerd) -> None:
    """Job control, a full-screen editor, a pager and top at a terminal; exec's own detach keys leave it running."""
    session = Session(docker.argv("exec", "-it", "--detach-keys", "ctrl-x,d", "--env", "PS1=$ ", "--env", "TERM=vt100",
                                  NAME, "sh"), rows=24, columns=80)  # fmt: skip
    terminal = session.terminal
    try:
        terminal.expect(b"$ ", timeout=docker.runtime.timeout)
        terminal.send(b"sleep 1234\n")
        _until_runs(docker, "sleep 1234")
        terminal.send(b"\x1a")
        terminal.expect(b"Stopped")
        terminal.send(b"bg; jobs\n")
        terminal.expect(b"Running")
        terminal.expect(b"$ ")
        terminal.send(b"fg\n")
        terminal.expect(b"sleep 1234\r\n")
        terminal.send(b"\x03")
        terminal.expect(b"$ ")  # typed ahead of the signal, input gets lost
        terminal.send(b"vi /tmp/note\n")
        _until_runs(docker, "vi /tmp/note")
        terminal.expect(b"~")
        terminal.send(b"ihello")
        terminal.expect(b"hello")
        terminal.send(b"\x1b")
        terminal.expect(b"- /tmp/note")  # what follows an escape at once would be part of a key's sequence
        terminal.send(b":wq\n")
        terminal.expect(b"$ ")
        assert docker.ok("exec", NAME, "cat", "/tmp/note") == "hello"
        terminal.send(b"seq 500 | less\n")
        terminal.expect(b"23\r\n")
        terminal.send(b"G")
        terminal.expect(b"500")
        terminal.send(b"q")
        terminal.send(b"top\n")
        terminal.expect(b"Load average")
        terminal.send(b"q")
        terminal.send(b"exec sleep 4321\n")
        _until_runs(docker, "sleep 4321")
        terminal.send(b"\x18d")
        terminal.expect(b"read escape sequence")
        session.wait(30)
    finally:
        session.close()
    docker.ok("exec", NAME, "sh", "-c", "kill $(ps -o pid,args | awk '/[s]leep 4321/ {print $1}')")


def _until_runs(docker: Dockerd, command: str) -> None:
    def runs() -> bool:
        return command in docker.ok("exec", NAME, "ps", "-o", "args").splitlines()

    wait_until(runs, timeout=30, what=command, interval=0.2)
