"""A guest's first word, and its console meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from runvm.errors import GuestError, HostError
from runvm.hypervisor import boot
from runvm.linux import process
from runvm.protocol import frames, messages, version

if TYPE_CHECKING:
    from collections.abc import Iterator


class Vmm:
    """The process, without a machine in it."""

    def __init__(self) -> None:
        self.pid = process.fork(lambda: signal.pause())


class Lines:
    """A guest with the far ends of its two lines."""

    def __init__(self) -> None:
        self.vmm = Vmm()  # first: it shall have no copy of the lines
        agent, self.agent = socket.socketpair()
        console, self.console = socket.socketpair()
        self.guest = boot.Guest(self.vmm, agent, console)  # type: ignore[arg-type]  # it isn't asked for anything

    def close(self) -> None:
        for line in (self.agent, self.console, self.guest.agent, self.guest.console):
            line.close()
        process.end_child(self.vmm.pid, "the process in the VMM's place")


@pytest.fixture
def lines() -> Iterator[Lines]:
    made = Lines()
    yield made
    made.close()


def test_a_guest_that_says_more_than_is_kept_comes_up(lines: Lines) -> None:
    """It would wait for ever for its console to be read, as with debug_console."""
    text = b"".join(b"[    0.%06d] a line of the kernel's\r\n" % number for number in range(40000))

    def speak() -> None:
        lines.console.sendall(text)
        hello = messages.encode(messages.Hello(version.own().decode()))
        lines.agent.sendall(frames.encode(frames.MESSAGE, 0, hello))

    speaker = threading.Thread(target=speak)
    speaker.start()
    lines.guest.wait_hello(deadline=time.monotonic() + 20)
    speaker.join()
    lines.guest.read_console()
    assert lines.guest.console_tail == text[-boot.CONSOLE_KEPT :]


def test_the_end_of_the_console_is_no_end_of_the_guest(lines: Lines) -> None:
    """Nor is it read again and again."""
    lines.console.sendall(b"last words\n")
    lines.console.close()
    threading.Timer(0.3, lines.agent.close).start()
    before = time.process_time()
    with pytest.raises(GuestError, match="ended before its agent answered") as caught:
        lines.guest.wait_hello(deadline=time.monotonic() + 20)
    assert time.process_time() - before < 0.2
    assert caught.value.details == "last words"


def test_a_panic_is_shown_though_a_long_stack_trace_comes_after_it(lines: Lines) -> None:
    """With as many lines as without one."""
    trace = [f" [<{number}>] called" for number in range(40)]
    lines.console.sendall("\n".join(["first", "Kernel panic - not syncing: of the test", *trace, ""]).encode())
    assert lines.guest.console_end().split("\n") == ["Kernel panic - not syncing: of the test", *trace[-11:]]
    lines.console.sendall("\n".join(["Kernel panic: the last", *trace[:2], ""]).encode())
    assert lines.guest.console_end().split("\n") == [*trace[-9:], "Kernel panic: the last", *trace[:2]]


def test_a_vmm_that_was_killed_is_not_its_guests_fault(lines: Lines) -> None:
    """As the kernel does for want of memory: it says nothing of an accelerator."""
    os.kill(lines.vmm.pid, signal.SIGKILL)
    lines.agent.close()
    with pytest.raises(HostError, match="the VMM was ended by signal 9"):
        lines.guest.wait_hello(deadline=time.monotonic() + 20)
