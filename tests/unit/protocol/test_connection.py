"""A framed connection whose receiver has a fault: the frames after it are delivered all the same."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress

import pytest

from runvm.linux.loop import Loop
from runvm.protocol import frames
from runvm.protocol.connection import Connection
from runvm.protocol.frames import MESSAGE, STDIN, STDOUT, Frame, FrameError
from runvm.protocol.streams import StreamSource


class _Ends:
    """A Connection whose frames go to *receive*, and the other end."""

    def __init__(self, loop: Loop, received: list[bytes], error: Exception) -> None:
        self.closed: list[str] = []
        ours, self.peer = socket.socketpair()

        def receive(frame: Frame) -> None:
            received.append(frame.payload)
            if len(received) == 1:
                raise error

        self.connection = Connection(loop, ours.detach(), on_frame=receive, on_close=self.closed.append)
        self.peer.sendall(frames.encode(MESSAGE, 0, b"one") + frames.encode(MESSAGE, 0, b"two"))


@pytest.fixture
def told() -> list[Exception]:
    """What the loop was told."""
    return []


def test_a_fault_with_one_frame_leaves_those_that_came_with_it(told: list[Exception]) -> None:
    """The agent's port carries every container's messages."""
    loop = Loop(on_error=told.append)
    received: list[bytes] = []
    ends = _Ends(loop, received, KeyError("a fault"))
    loop.turn(1)
    assert received == [b"one", b"two"]
    assert [type(error) for error in told] == [KeyError]
    ends.peer.sendall(frames.encode(MESSAGE, 0, b"three"))
    loop.turn(1)
    assert received[2:] == [b"three"]
    assert ends.connection.open
    ends.connection.close()
    ends.peer.close()


def test_a_peer_that_breaks_the_protocol_is_cut_off(told: list[Exception]) -> None:
    """That isn't our fault."""
    received: list[bytes] = []
    loop = Loop(on_error=told.append)
    ends = _Ends(loop, received, FrameError("bad"))
    loop.turn(1)
    assert (received, told) == ([b"one"], [])
    assert ends.closed == ["the peer broke the protocol: bad"]
    ends.peer.close()


def test_many_streams_wait_instead_of_filling_the_queue() -> None:
    """Of a peer that doesn't read: each may have a window under way, a hundred together had the connection cut off."""
    loop = Loop()
    ours, peer = socket.socketpair()
    closed: list[str] = []
    sender = Connection(loop, ours.detach(), on_frame=lambda frame: None, on_close=closed.append, max_queue=16 << 20)
    ended: list[int] = []
    for number in range(100):
        reader, writer = os.pipe2(os.O_NONBLOCK)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.write(writer, bytes(1 << 20))
        os.close(writer)
        end = lambda number=number: ended.append(number)  # noqa: E731
        StreamSource(loop, reader, STDOUT, number, sender.send, end, gate=sender.gate)
    for _ in range(200):
        loop.turn(0)
    assert sender.open, closed
    received = 0
    peer.setblocking(False)
    while len(ended) < 100 or received < 100 << 20:
        loop.turn(0.01)
        with suppress(BlockingIOError):
            received += len(peer.recv(1 << 20))
        assert sender.open, closed
    sender.close()
    peer.close()


def test_what_is_sent_on_waits_for_the_next_connection() -> None:
    """A shim's input for a guest that doesn't read isn't read either."""
    loop = Loop()
    first, source = socket.socketpair()
    second, target = socket.socketpair()
    onward = Connection(loop, second.detach(), on_frame=lambda frame: None, on_close=lambda reason: None)

    def receive(frame: Frame) -> None:
        onward.send(*frame)
        incoming.wait_at(onward.gate)

    incoming = Connection(loop, first.detach(), on_frame=receive, on_close=lambda reason: None)
    source.setblocking(False)
    target.setblocking(False)
    frame = memoryview(frames.encode(STDIN, 1, bytes(1 << 18)) * 80)
    sent = received = 0

    def turns(*, reading: bool) -> None:
        nonlocal sent, received
        for _ in range(1000):
            with suppress(BlockingIOError):
                sent += source.send(frame[sent:]) if sent < len(frame) else 0
            if reading:
                with suppress(BlockingIOError):
                    received += len(target.recv(1 << 20))
            loop.turn(0)

    turns(reading=False)
    assert (4 << 20) < sent < (8 << 20)
    turns(reading=True)
    assert received == len(frame)
    for each in (onward, incoming):
        each.close()
    source.close()
    target.close()
