"""Streams where one end is replaced, as a checkpoint's restore does, or stands still, as while one is taken."""

from __future__ import annotations

import os
import tracemalloc
from random import Random

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


def test_frames_of_a_byte_that_wait_take_little_more_than_their_bytes() -> None:
    """A guest may send what is credited in as many as it likes."""
    loop, sent = Loop(), Sent()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    sink = Sink(loop, writer, STDIN, 1, sent)
    sink.write(bytes(frames.CHUNK))
    frames_of_a_byte = [bytes([number % 256]) for number in range(256)]
    tracemalloc.start()
    try:
        for number in range(1 << 18):
            sink.write(frames_of_a_byte[number % 256])
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    sink.close()
    os.close(reader)


@pytest.mark.parametrize("careful", [False, True])
def test_all_that_waits_is_written_in_order_and_credited_once(careful: bool) -> None:
    """Small and large payloads, while the reader takes some now and then."""
    loop, sent, random = Loop(), Sent(), Random(3)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    sink = Sink(loop, writer, STDIN, 1, sent, careful=careful)
    said, got = bytearray(), bytearray()
    for _ in range(3000):
        payload = random.randbytes(random.choice((1, 2, 100, 4095, 4096, 5000, 70_000)))
        if len(said) + len(payload) - sent.credit <= frames.WINDOW:
            sink.write(payload)
            said += payload
        else:
            loop.turn(0)
            got += read_all(reader)
    sink.write(b"")
    while sink.open:
        loop.turn(0)
        got += read_all(reader)
    got += read_all(reader)
    assert got == said
    assert len(said) - frames.WINDOW // 4 < sent.credit <= len(said)
    os.close(reader)


def test_a_source_that_nobody_hears_reads_on() -> None:
    """More than a window: who writes there isn't held up, nor ended by SIGPIPE."""
    loop, sent = Loop(), Sent()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    ended: list[bool] = []
    source = StreamSource(loop, reader, STDOUT, 1, sent, lambda: ended.append(True))
    source.discard()
    left = frames.WINDOW + 1000
    while left:
        left -= os.write(writer, bytes(min(left, 1 << 16)))
        loop.turn(0)
    os.close(writer)
    for _ in range(10):
        loop.turn(0)
    assert ended
    assert not sent.data


def test_a_drain_ends_at_what_was_there() -> None:
    """Others may go on writing, faster than it reads."""
    loop, sent = Loop(), Sent()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    source = StreamSource(loop, reader, STDOUT, 1, sent, lambda: None)
    os.write(writer, b"its own")
    source.due = source.waiting
    os.write(writer, b", and more")
    source.drain()
    assert sent.data.startswith(b"its own")
    assert source.due == 0
    os.write(writer, b", and yet more")
    source.drain()
    assert b"yet" not in sent.data
    assert not source.blocked
    source.close()
    os.close(writer)
