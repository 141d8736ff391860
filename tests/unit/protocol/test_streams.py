"""Streams where one end is replaced, as a checkpoint's restore does, or stands still, as while one is taken."""

from __future__ import annotations

import os

import pytest

from runvm.linux.loop import Loop
from runvm.protocol import frames
from runvm.protocol.frames import CREDIT_KIND, STDIN, STDOUT, FrameError
from runvm.protocol.streams import Sink, StreamSource


class Sent:
    """What an end has sent: bytes of data, bytes of credit."""

    def __init__(self) -> None:
        self.data = b""
        self.credit = 0

    def __call__(self, kind: int, channel: int, payload: bytes) -> None:
        if kind == CREDIT_KIND:
            self.credit += frames.CREDIT.unpack(payload)[1]
        else:
            self.data += payload


def read_all(fd: int) -> bytes:
    data = b""
    while True:
        try:
            part = os.read(fd, 1 << 20)
        except BlockingIOError:
            return data
        if not part:
            return data
        data += part


def test_what_is_pending_is_counted_for_the_old_sender_alone() -> None:
    """With a whole window pending a new sender may send a whole window; it gets credit for its own bytes only."""
    loop, sent = Loop(), Sent()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    sink = Sink(loop, writer, STDIN, 1, sent)
    chunk = frames.CHUNK
    old = b"o" * frames.WINDOW
    new = b"n" * frames.WINDOW
    for start in range(0, len(old), chunk):
        sink.write(old[start : start + chunk])
    before = sent.credit
    sink.change_sender()
    for start in range(0, len(new), chunk):
        sink.write(new[start : start + chunk])
    with pytest.raises(FrameError):
        sink.write(b"x" * chunk)
    got = b""
    while len(got) < len(old) + len(new):
        loop.turn(0)
        got += read_all(reader)
    loop.turn(0)
    assert got == old + new
    assert sent.credit - before <= len(new)
    assert sent.credit - before > len(new) * 3 // 4 - chunk
    sink.close()
    os.close(reader)


def test_a_source_that_is_paused_reads_nothing_whatever_it_is_credited() -> None:
    loop, sent = Loop(), Sent()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    source = StreamSource(loop, reader, STDOUT, 1, sent, lambda: None)
    os.write(writer, b"one")
    loop.turn(0)
    source.pause()
    os.write(writer, b"two")
    source.credit(100)
    loop.turn(0)
    assert sent.data == b"one"
    source.resume()
    loop.turn(0)
    assert sent.data == b"onetwo"
    source.close()
    os.close(writer)
