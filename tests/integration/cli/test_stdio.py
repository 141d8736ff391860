"""Standard streams: any bytes in any amount, both ways, apart from each other, with their ends."""

from __future__ import annotations

import hashlib
import os
import re
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.process import wait_until

if TYPE_CHECKING:
    from framework.runtime import Box, Runtime

LARGE = 50 * 1024 * 1024


def test_bytes_pass_both_ways_unchanged(box: Box) -> None:
    """Every byte value, and no newline at the end: what goes in comes out."""
    data = bytes(range(256)) * 64 + b"no newline at the end"
    result = box("cat").run(stdin=data)
    assert result.code == 0
    assert result.stdout == data


def test_stdout_and_stderr_stay_apart(box: Box) -> None:
    """What init writes to 1 and 2 arrives on 1 and 2, complete though init ends at once."""
    result = box.sh("echo out; echo err >&2; echo out2; echo err2 >&2; head -c 100000 /dev/zero >&2; exit 3").run()
    assert result.code == 3
    assert result.stdout == b"out\nout2\n"
    assert result.stderr == b"err\nerr2\n" + bytes(100000)


def test_fifty_megabytes_pass_through(box: Box, runtime: Runtime) -> None:
    """A large stream in and out again arrives whole and in order, and its end is passed on."""
    block = os.urandom(1024 * 1024)
    data = block * (LARGE // len(block))
    result = box("cat").run(stdin=data, timeout=runtime.timeout + 120)
    assert result.code == 0
    assert len(result.stdout) == len(data)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


def test_end_of_input_is_passed_on_and_output_still_comes(box: Box) -> None:
    """When the writer closes, the container's reader sees the end, and what it writes then arrives."""
    result = box.sh("wc -c; echo after").run(stdin=b"12345")
    assert result.text.split() == ["5", "after"]


def test_input_from_dev_null_is_at_its_end(box: Box) -> None:
    """With /dev/null as stdin a read gives the end at once."""
    result = box.sh("cat; echo done").run()
    assert result.stdout == b"done\n"


def test_detached_streams_are_the_callers_pipes(box: Box) -> None:
    """create's fds 0, 1, 2 become init's: live while it runs, ended when it ends, unbuffered line by line."""
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    container = box.sh('while read line; do echo "got $line"; echo "saw $line" >&2; done; echo end')
    container.create(stdin=stdin_read, stdout=stdout_write, stderr=stderr_write)
    for fd in (stdin_read, stdout_write, stderr_write):
        os.close(fd)
    container.start()
    for word in (b"one", b"two"):
        os.write(stdin_write, word + b"\n")
        assert read_some(stdout_read, len(word) + 5) == b"got " + word + b"\n"
        assert read_some(stderr_read, len(word) + 5) == b"saw " + word + b"\n"
    os.close(stdin_write)
    assert read_some(stdout_read, 4) == b"end\n"
    assert container.wait() == 0
    assert read_some(stdout_read, 1) == b"", "the last writer is gone: an engine's log reader ends"
    assert read_some(stderr_read, 1) == b""
    os.close(stdout_read)
    os.close(stderr_read)
    container.wait_status("stopped")


def read_some(fd: int, size: int, timeout: float = 20) -> bytes:
    """*size* bytes, fewer at the end. Raises AssertionError past the deadline."""
    data = b""
    while len(data) < size:
        ready, _, _ = select.select([fd], [], [], timeout)
        assert ready, f"nothing to read within {timeout} s after {data!r}"
        chunk = os.read(fd, size - len(data))
        if not chunk:
            break
        data += chunk
    return data


def test_a_slow_reader_holds_the_writer_and_loses_nothing(box: Box) -> None:
    """Back-pressure: 8 MB written while nobody reads wait; then all arrive. `state` answers meanwhile."""
    size = 8 * 1024 * 1024
    stdout_read, stdout_write = os.pipe()
    container = box.sh(f"head -c {size} /dev/zero; echo done >&2")
    container.create(stdout=stdout_write)
    os.close(stdout_write)
    container.start()
    wait_until(lambda: bool(select.select([stdout_read], [], [], 0)[0]), timeout=20, what="first output")
    assert container.status == "running"
    assert container.stderr() == b"", "the writer waits"
    total = 0
    while chunk := read_some(stdout_read, 65536):
        total += len(chunk)
    os.close(stdout_read)
    assert total == size
    assert container.wait() == 0


def test_a_reader_that_goes_away_is_a_broken_pipe_for_the_container(box: Box) -> None:
    """When the reader of stdout closes, the container's writer gets SIGPIPE or EPIPE and may end; stderr goes on."""
    stdout_read, stdout_write = os.pipe()
    container = box.sh("yes; echo ended >&2; exit 5")
    container.create(stdout=stdout_write)
    os.close(stdout_write)
    container.start()
    assert read_some(stdout_read, 4) == b"y\ny\n"
    os.close(stdout_read)
    assert container.wait(30) == 5
    assert b"ended\n" in container.stderr()


def test_two_streams_of_two_containers_dont_mix(box: Box) -> None:
    """Two containers with input and output at the same time."""
    boxes = [box("cat") for _ in range(2)]
    payloads = [os.urandom(1024 * 1024) for _ in boxes]
    results: dict[int, bytes] = {}

    def run(number: int) -> None:
        results[number] = boxes[number].run(stdin=payloads[number]).stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number] for number in range(2)] == payloads


def test_closed_standard_streams_do_no_harm(box: Box, runtime: Runtime) -> None:
    """A caller without fds 0, 1, 2 (a daemon that closed them): create, start and delete work all the same."""
    container = box.idle()
    container.bundle.save()
    script = 'exec "$@" <&- >&- 2>&-'
    create = ["create", "--bundle", container.bundle.path, "--pid-file", container.pid_file, container.id]
    for command in (create, ["start", container.id], ["kill", container.id, "9"], ["delete", "--force", container.id]):
        argv = runtime.argv(*command, log=f"{container.bundle.path}/log")
        assert process.call(["sh", "-c", script, "sh", *argv], timeout=runtime.timeout).code == 0, command
    assert runtime.ids() == []


def test_a_descriptor_that_the_caller_leaks_is_held_by_nobody(box: Box) -> None:
    """containerd's shim leaks its listening socket into create and start: what stays behind must not keep it."""
    leaked = os.memfd_create("leaked-by-caller", 0)
    container = box.idle()
    try:
        container.created(container.begin(pass_fds=(leaked,))).expect(0)
        container.runtime.start("start", container.id, pass_fds=(leaked,)).wait(container.runtime.timeout).expect(0)
    finally:
        os.close(leaked)
    for pid in process.descendants(os.getpid()):
        held = [path for path in process.open_files(pid) if "leaked-by-caller" in path]
        assert held == [], process.describe(pid)
    assert "leaked" not in container.sh("ls -l /proc/1/fd")


def descriptors(pid: int) -> dict[int, str]:
    """What each descriptor of a process leads to."""
    return {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


def test_the_process_on_the_host_has_its_streams_and_no_file_of_the_runtimes(box: Box) -> None:
    """Of the container and of an exec: 1 and 2 are the files that the caller gave, which others can write to by
    /proc/PID/fd/1, and what is open besides has no name in any file system; programs have 0, 1 and 2."""
    container = box.idle()
    pid_file = f"{container.bundle.path}/exec.pid"
    outputs = [f"{container.bundle.path}/exec-{name}" for name in ("stdout", "stderr")]
    container.launch()
    with open(outputs[0], "wb") as out, open(outputs[1], "wb") as err:
        arguments = ("exec", "--detach", "--pid-file", pid_file, container.id, "sleep", "1000")
        container.runtime.start(*arguments, stdout=out, stderr=err).wait(container.runtime.timeout).expect(0)
    with open(pid_file, encoding="ascii") as file:
        pid = int(file.read())
    own = [f"{container.bundle.path}/{name}" for name in ("stdout", "stderr")]
    for found, files in ((descriptors(container.init_pid), own), (descriptors(pid), outputs)):
        assert [found.pop(1), found.pop(2)] == files
        assert [path for fd, path in found.items() if "/" in path and (fd, path) != (0, "/dev/null")] == []
    with open(f"/proc/{container.init_pid}/fd/1", "ab") as stream:
        stream.write(b"from outside\n")
    assert container.stdout() == b"from outside\n"
    for one in ("self", "1"):
        assert container.sh(f"cd /proc/{one}/fd; echo *").split()[:3] == ["0", "1", "2"]
    assert set(container.sh("cd /proc/1/fd; echo *").split()) <= {"0", "1", "2", "10"}  # 10: the shell's own
    os.kill(pid, signal.SIGKILL)
    process.reap(pid, 20)


def test_at_a_terminal_the_process_on_the_host_has_that_alone(box: Box) -> None:
    """0, 1 and 2 are the terminal that came by --console-socket."""
    container = box.idle()
    container.bundle.process["terminal"] = True
    container.terminal(lambda path: container.create("--console-socket", path))
    container.start()
    found = descriptors(container.init_pid)
    terminals = {found.pop(number) for number in range(3)}
    assert len(terminals) == 1
    assert re.fullmatch(r"(/dev)?/(pts/)?\d+|/dev/null", terminals.pop())
    assert [path for path in found.values() if "/" in path and "pts" not in path] == []  # a shell keeps it once more


SHIFT = """import os, sys
count = int(sys.argv[1])
high = [os.dup2(int(fd), 500 + n, inheritable=False) for n, fd in enumerate(sys.argv[2:2 + count])]
for n, fd in enumerate(high):
    os.dup2(fd, 3 + n, inheritable=True)
if "LISTEN_FDS" in os.environ:
    os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


def handing(argv: list[str], *fds: int) -> list[str]:
    """The command for *argv* with *fds* as its descriptors 3 and up, made its own by LISTEN_PID where LISTEN_FDS is."""
    return [sys.executable, "-c", SHIFT, str(len(fds)), *map(str, fds), *argv]


def test_preserve_fds_reach_the_container(box: Box, runtime: Runtime) -> None:
    """--preserve-fds 3: a pipe to write to, one to read from to its end, a file, as descriptors 3, 4 and 5."""
    reader, writer = os.pipe()
    source, feed = os.pipe()
    container = box.sh("cat <&4 >&3; cat <&5 >&3; echo done >&3")
    path = container.bundle.file("/file", "from the file\n")
    container.bundle.save()
    argv = runtime.argv("run", "--bundle", container.bundle.path, "--preserve-fds", "3", container.id)
    data = bytes(range(256)) * 1024

    def write() -> None:
        with open(feed, "wb") as file:
            file.write(data)

    feeder = threading.Thread(target=write)
    with open(path, "rb") as file:
        fds = (writer, source, file.fileno())
        running = process.Process(handing(argv, *fds), pass_fds=fds)
    os.close(writer)
    os.close(source)
    feeder.start()
    received = b""
    while chunk := read_some(reader, 65536):
        received += chunk
    feeder.join(10)
    os.close(reader)
    result = running.wait(runtime.timeout)
    assert result.code == 0, result.describe()
    assert received == data + b"from the file\ndone\n"


def test_a_hundred_descriptors_are_handed_on(box: Box, runtime: Runtime) -> None:
    """Each is where the caller had it, the last of them 102; one is /dev/null."""
    pipes = [os.pipe() for _ in range(99)]
    null = os.open(os.devnull, os.O_WRONLY)
    fds = (*(writer for _, writer in pipes), null)
    # a shell takes descriptors of one digit only
    opened = "; ".join(f"echo {number} >/proc/self/fd/{number}" for number in range(3, 103))
    container = box.sh(f"{opened}; echo done")
    container.bundle.save()
    argv = runtime.argv("run", "--bundle", container.bundle.path, "--preserve-fds", "100", container.id)
    running = process.Process(handing(argv, *fds), pass_fds=fds)
    for fd in fds:
        os.close(fd)
    assert running.wait(runtime.timeout).expect(0).stdout == b"done\n"
    for number, (reader, _) in enumerate(pipes, start=3):
        assert read_some(reader, 100) == b"%d\n" % number
        os.close(reader)


def test_a_connected_socket_is_handed_on_both_ways(box: Box, runtime: Runtime) -> None:
    """To exec, too: what either side sends arrives, and so does that one side has ended while the other goes on."""
    container = box.sleeper()
    ours, theirs = socket.socketpair()
    script = "cat <&3 >/tmp/all; echo answer >&3"
    argv = runtime.argv("exec", "--preserve-fds", "1", container.id, "sh", "-c", script)
    running = process.Process(handing(argv, theirs.fileno()), pass_fds=(theirs.fileno(),))
    theirs.close()
    with ours:
        ours.settimeout(runtime.timeout)
        ours.sendall(b"question")
        ours.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := ours.recv(100):
            received += chunk
    assert received == b"answer\n"
    running.wait(runtime.timeout).expect(0)
    assert container.sh("cat /tmp/all") == "question"


def test_descriptors_of_a_service_manager_come_first(box: Box, runtime: Runtime) -> None:
    """LISTEN_FDS=1 with LISTEN_PID: descriptor 3, told to the process; --preserve-fds' are after it. Those that are
    meant for another process are not handed on."""
    reader, writer = os.pipe()
    second, other = os.pipe()
    container = box.sh("echo $LISTEN_FDS $LISTEN_PID >&3; echo second >&4")
    container.bundle.save()
    argv = runtime.argv("run", "--bundle", container.bundle.path, "--preserve-fds", "1", container.id)
    env = {**os.environ, "LISTEN_FDS": "1"}
    running = process.Process(handing(argv, writer, other), pass_fds=(writer, other), env=env)
    os.close(writer)
    os.close(other)
    running.wait(runtime.timeout).expect(0)
    assert read_some(reader, 100) == b"1 1\n"
    assert read_some(second, 100) == b"second\n"
    os.close(reader)
    os.close(second)
    stranger = box.sh("echo ${LISTEN_FDS-none}; test -e /proc/self/fd/3 && echo open; true")
    stranger.bundle.save()
    argv = runtime.argv("run", "--bundle", stranger.bundle.path, stranger.id)
    result = process.call(argv, env={**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"}, timeout=runtime.timeout)
    assert result.expect(0).text == "none"


def test_a_preserved_descriptor_that_is_not_open_is_named(box: Box, runtime: Runtime) -> None:
    """runc's message; nothing is left."""
    container = box("true")
    container.bundle.save()
    result = runtime.call("run", "--bundle", container.bundle.path, "--preserve-fds", "20", container.id)
    assert result.code == 1
    assert re.search(r"unable to stat preserved-fd \d+ \(of 20\)", result.error)
    assert container.id not in runtime.ids()


@pytest.mark.only("runvm", "others hand any descriptor on")
def test_descriptors_that_bytes_cannot_stand_for_are_refused(box: Box, runtime: Runtime) -> None:
    """A listening socket, a directory, a file open for both: an error that says what it is, before anything is made."""
    container = box("true")
    container.bundle.save()
    argv = runtime.argv("run", "--bundle", container.bundle.path, "--preserve-fds", "1", container.id)
    with socket.create_server(("127.0.0.1", 0)) as server:
        directory = os.open("/", os.O_RDONLY)
        both = os.memfd_create("both")
        for fd, words in (
            (server.fileno(), b"descriptor 3 is a listening socket"),
            (directory, b"descriptor 3 is a directory"),
            (both, b"descriptor 3 is a file open for reading and writing"),
        ):
            result = process.call(handing(argv, fd), pass_fds=(fd,), timeout=runtime.timeout)
            assert result.code == 1
            assert words in result.stderr
        os.close(directory)
        os.close(both)
    assert container.id not in runtime.ids()
