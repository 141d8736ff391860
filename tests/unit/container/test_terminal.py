"""The relay between the caller's streams and a terminal, where these are slow, or don't block."""

from __future__ import annotations

import os
import time
import tty
from typing import TYPE_CHECKING

import pytest

from runvm.container import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 3_000_000


class Command:
    """A process that relays between pipes and the terminal of *program*."""

    def __init__(self, program: list[str]) -> None:
        stdin, self.stdin = os.pipe()
        self.stdout, self.theirs = os.pipe()

        def run() -> int:
            master, slave = os.openpty()
            tty.setraw(slave)
            pid = _fork(lambda: _execute(program, slave))
            os.close(slave)
            for number, fd in enumerate((stdin, self.theirs)):
                os.dup2(fd, number)
            os.closerange(3, master)
            os.closerange(master + 1, 256)
            return terminal.relay(master, pid, frozenset())

        os.set_blocking(self.theirs, False)
        self.pid = _fork(run)
        os.close(stdin)

    def read_all(self) -> int:
        """How much comes until the end."""
        os.close(self.theirs)
        count = 0
        while data := os.read(self.stdout, 1 << 20):
            count += len(data)
        os.close(self.stdout)
        return count


def _fork(child: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = child() >> 8
        finally:
            os._exit(code)
    return pid


def _execute(program: list[str], slave: int) -> int:
    os.login_tty(slave) if hasattr(os, "login_tty") else [os.dup2(slave, fd) for fd in range(3)]
    os.execvp(program[0], program)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_stdout_that_does_not_block_gets_all() -> None:
    """EAGAIN isn't the end; nor are the flags changed, which the caller has, too."""
    command = Command(["sh", "-c", f"head -c {COUNT} /dev/zero; exit 3"])
    time.sleep(0.5)
    assert not os.get_blocking(command.theirs)
    assert command.read_all() == COUNT
    os.close(command.stdin)
    assert os.waitpid(command.pid, 0)[1] == 3 << 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_comes_back_goes_on_while_more_goes_in() -> None:
    """The terminal takes no more input until its output is read."""
    command = Command(["head", "-c", str(COUNT)])
    writer = _fork(lambda: _write(command.stdin))
    os.close(command.stdin)
    time.sleep(0.5)
    assert command.read_all() == COUNT
    assert os.waitpid(command.pid, 0)[1] == 0
    assert os.waitpid(writer, 0)[1] == 0


def _write(fd: int) -> int:
    data = memoryview(bytes(COUNT))
    while data:
        data = data[os.write(fd, data) :]
    return 0
