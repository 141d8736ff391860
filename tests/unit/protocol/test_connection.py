"""A framed connection whose receiver has a fault: the frames after it are delivered all the same."""

from __future__ import annotations

import socket

import pytest

from runvm.linux.loop import Loop
from runvm.protocol import frames
from runvm.protocol.connection import Connection
from runvm.protocol.frames import MESSAGE, Frame, FrameError


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
