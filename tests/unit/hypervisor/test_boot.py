"""A guest's first word, and its console meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from runvm.errors import GuestError
from runvm.hypervisor import boot
from runvm.protocol import frames, messages, version

if TYPE_CHECKING:
    from collections.abc import Iterator


class Lines:
    """A guest with the far ends of its two lines."""

    def __init__(self) -> None:
        agent, self.agent = socket.socketpair()
        console, self.console = socket.socketpair()
        self.guest = boot.Guest(None, agent, console)  # type: ignore[arg-type]  # no VM is asked for anything

    def close(self) -> None:
        for line in (self.agent, self.console, self.guest.agent, self.guest.console):
            line.close()


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
