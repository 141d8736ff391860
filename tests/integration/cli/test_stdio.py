"""Standard streams: any bytes in any amount, both ways, apart from each other, with their ends."""

from __future__ import annotations

import hashlib
import os
import select
import sys
import threading
from typing import TYPE_CHECKING

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


def test_preserve_fds_reach_the_container(box: Box, runtime: Runtime) -> None:
    """--preserve-fds 1 passes descriptor 3 on to init, and LISTEN_FDS' count is apart from it."""
    reader, writer = os.pipe()
    container = box.sh("echo through >&3")
    container.bundle.save()
    log = f"{container.bundle.path}/log"
    flags = ["--bundle", container.bundle.path, "--preserve-fds", "1"]
    argv = runtime.argv("run", *flags, container.id, log=log)
    shift = "import os, sys; os.dup2(int(sys.argv[1]), 3, inheritable=True); os.execv(sys.argv[2], sys.argv[2:])"
    command = [sys.executable, "-c", shift, str(writer), *argv]
    result = process.call(command, pass_fds=(writer,), timeout=runtime.timeout)
    os.close(writer)
    data = read_some(reader, 100)
    os.close(reader)
    assert result.code == 0, result.describe()
    assert data == b"through\n"
