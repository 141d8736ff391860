"""Output that is taken late, or written late: by a slow reader, by what outlives the process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from framework import process
from framework.process import FACTOR, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from framework.runtime import Box, Container

COUNT = 1_000_000
"""Bytes that a pipe doesn't hold, and that a process can write at once all the same."""


@pytest.fixture(scope="module")
def running(module_box: Box) -> Container:
    """A container that the tests here exec into."""
    return module_box.idle().launch()


def start_exec(container: Container, *argv: str) -> tuple[int, subprocess.Popen[bytes]]:
    """A foreground exec whose stdout is a pipe: the pipe's reader, and the command."""
    reader, writer = os.pipe()
    runtime = container.runtime
    command = subprocess.Popen(
        runtime.argv("exec", container.id, *argv), stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.DEVNULL
    )
    os.close(writer)
    return reader, command


def read_all(fd: int) -> bytes:
    """What comes until the end."""
    with open(fd, "rb", buffering=0, closefd=True) as file:
        return file.read()


def test_a_reader_that_is_slow_to_begin_gets_all(running: Container) -> None:
    """However long it takes: the process has ended by then, its output hasn't."""
    reader, command = start_exec(running, "head", "-c", str(COUNT), "/dev/zero")
    time.sleep(13)
    assert len(read_all(reader)) == COUNT
    assert command.wait(20 * FACTOR) == 0


def test_a_reader_gets_all_of_a_container_though_its_machine_has_ended(box: Box) -> None:
    """The virtual machine doesn't wait for it; the container's state does."""
    reader, writer = os.pipe()
    container = box("sh", "-c", f"head -c {COUNT} /dev/zero; exit 5")
    container.create(stdout=writer)
    os.close(writer)
    container.start()
    time.sleep(13)
    assert container.status == "running"
    assert len(read_all(reader)) == COUNT
    assert container.wait(10) == 5
    container.delete()


def unread(box: Box) -> tuple[Container, int]:
    """A container that has written all that it has to say, and the pipe from which nobody has read it."""
    reader, writer = os.pipe()
    container = box("head", "-c", str(COUNT), "/dev/zero")
    container.create(stdout=writer)
    os.close(writer)
    container.start()
    time.sleep(1)
    return container, reader


def test_a_kill_ends_what_waits_for_a_reader(box: Box) -> None:
    """A process that hung in write(2) would end at once; so does one that has written all into buffers of runvm's."""
    container, reader = unread(box)
    assert container.status == "running"
    started = time.monotonic()
    container.kill(signal.SIGKILL)
    assert container.wait(10) == 137
    assert time.monotonic() - started < 9 * FACTOR
    container.delete()
    os.close(reader)


def test_delete_by_force_does_not_wait_for_a_reader(box: Box) -> None:
    """Nor does anything stay behind."""
    container, reader = unread(box)
    container.delete("--force")
    os.close(reader)


def test_a_foreground_exec_ends_with_its_output(running: Container) -> None:
    """As under runc: what its process leaves behind may still write."""
    result = running.exec("sh", "-c", "(sleep 1; echo late) & echo now; exit 3")
    assert (result.code, result.stdout) == (3, b"now\nlate\n")


def test_a_detached_exec_leaves_its_output_to_a_daemon(running: Container, tmp_path: Path) -> None:
    """The pid that the caller waits for ends with the process; the daemon goes on, and isn't ended by SIGPIPE."""
    log, pid_file = tmp_path / "log", tmp_path / "pid"
    script = "(sleep 1; echo late; sleep 1; echo later; sleep 1000) & echo now; exit 7"
    with log.open("wb") as file:
        subprocess.run(
            running.runtime.argv("exec", "--detach", "--pid-file", str(pid_file), running.id, "sh", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=True,
        )
    assert process.reap(int(pid_file.read_text()), 10) == 7
    assert log.read_bytes() == b"now\n"
    wait_until(lambda: log.read_bytes() == b"now\nlate\nlater\n", timeout=10, what="the daemon's output")


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
def test_a_signal_to_a_created_container_ends_it_as_under_runc(box: Box, number: int, ends: bool) -> None:
    """What waits there under runc is ended by some signals, and not by others."""
    container = box("sleep", "1000")
    container.create()
    container.kill(number)
    if ends:
        # runc's is that of Go, whose program the one that waits there is
        assert container.wait(10) == (2 if container.runtime.name == "runc" else 128 + number)
        assert container.status == "stopped"
    else:
        time.sleep(0.5)
        assert container.status == "created"
        container.start()
        assert container.status == "running"
    container.delete("--force")
