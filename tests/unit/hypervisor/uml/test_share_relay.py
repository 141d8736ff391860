"""The relay between User Mode Linux and virtiofsd: what it passes on, what it answers itself, what it refuses."""

from __future__ import annotations

import os
import random
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from runvm.errors import VmmError
from runvm.hypervisor.uml.share_relay import ShareRelay, checked, configuration

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION = struct.pack("=QQQQ", 0x1000, 0x2000, 0x3000, 0)


def header(request: int, size: int, flags: int = 1) -> bytes:
    return struct.pack("=III", request, flags, size)


class Line:
    """A relay with a test at each of its ends."""

    def __init__(self) -> None:
        self.kernel, kernel = socket.socketpair()
        self.daemon, daemon = socket.socketpair()
        self.ends = [self.kernel, kernel, self.daemon, daemon]
        for sock in self.ends:
            sock.settimeout(5)
        self.relay = ShareRelay(kernel, daemon, "tag")

    def close(self) -> None:
        for sock in self.ends:
            sock.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def test_a_request_and_its_answer_are_passed_on(line: Line) -> None:
    line.kernel.sendall(header(1, 0))
    line.daemon.sendall(header(1, 8, 5) + struct.pack("=Q", 1 << 30))
    line.relay.step()
    assert line.daemon.recv(100) == header(1, 0)
    assert line.kernel.recv(100) == header(1, 8, 5) + struct.pack("=Q", 1 << 30)


def test_the_configuration_is_offered_and_answered_without_the_daemon(line: Line) -> None:
    line.kernel.sendall(header(15, 0))
    line.daemon.sendall(header(15, 8, 5) + struct.pack("=Q", 0xFFFF & ~(1 << 9)))
    line.relay.step()
    assert line.daemon.recv(100) == header(15, 0)
    (offered,) = struct.unpack("=Q", line.kernel.recv(100)[12:])
    assert offered == 1 << 3 | 1 << 5 | 1 << 9
    line.kernel.sendall(header(16, 8) + struct.pack("=Q", offered))
    line.relay.step()
    assert line.daemon.recv(100) == header(16, 8) + struct.pack("=Q", 1 << 3 | 1 << 5)
    line.kernel.sendall(header(24, 12 + 40) + struct.pack("=III", 0, 40, 0) + bytes(40))
    line.relay.step()
    answer = line.kernel.recv(100)
    assert answer == header(24, 52, 5) + struct.pack("=III", 0, 40, 0) + b"tag".ljust(36, b"\0") + b"\1\0\0\0"


def test_the_memory_table_is_cut_to_its_regions_and_its_descriptor_passed_on(line: Line) -> None:
    with open("/dev/null", "rb") as file:
        payload = struct.pack("=II", 1, 0) + REGION + bytes(32)
        socket.send_fds(line.kernel, [header(5, len(payload)) + payload], [file.fileno()])
        line.relay.step()
        data, descriptors, _, _ = socket.recv_fds(line.daemon, 200, 4)
        assert data == header(5, 40) + struct.pack("=II", 1, 0) + REGION
        assert [os.path.sameopenfile(fd, file.fileno()) for fd in descriptors] == [True]
        for fd in descriptors:
            os.close(fd)


def test_it_is_done_when_both_queues_are_in_use(line: Line) -> None:
    for index in (0, 1):
        assert not line.relay.done
        line.kernel.sendall(header(18, 8) + struct.pack("=II", index, 1))
        line.relay.step()
    assert line.relay.done


def test_a_daemon_that_answers_another_request_is_refused(line: Line) -> None:
    line.kernel.sendall(header(1, 0))
    line.daemon.sendall(header(2, 8, 5) + bytes(8))
    with pytest.raises(VmmError, match="virtiofsd broke the vhost-user protocol"):
        line.relay.step()


def test_a_side_that_ends_is_told(line: Line) -> None:
    line.kernel.close()
    with pytest.raises(VmmError, match="the guest's kernel ended while the share was set up"):
        line.relay.step()


@pytest.mark.parametrize(
    ("request_", "flags", "payload", "descriptors"),
    [
        (1, 1, b"x", 0),
        (1, 5, b"", 0),
        (1, 2, b"", 0),
        (2, 1, bytes(7), 0),
        (4, 1, b"", 0),
        (12, 1, bytes(8), 0),
        (13, 1, bytes(8), 2),
        (99, 1, b"", 0),
        (5, 1, b"", 0),
        (5, 1, struct.pack("=II", 0, 0) + bytes(64), 0),
        (5, 1, struct.pack("=II", 3, 0) + bytes(96), 3),
        (5, 1, struct.pack("=II", 2, 0) + bytes(32), 2),
        (5, 1, struct.pack("=II", 1, 0) + bytes(64), 2),
        (24, 1, bytes(11), 0),
        (24, 1, struct.pack("=III", 0, 41, 0) + bytes(41), 0),
        (24, 1, struct.pack("=III", 36, 8, 0) + bytes(8), 0),
        (24, 1, struct.pack("=III", 0, 8, 0), 0),
    ],
)
def test_what_is_malformed_is_refused(request_: int, flags: int, payload: bytes, descriptors: int) -> None:
    with pytest.raises(VmmError, match="broke the vhost-user protocol"):
        checked(request_, flags, payload, descriptors)


def test_configuration_gives_the_part_that_is_asked_for() -> None:
    assert configuration("tag", struct.pack("=III", 36, 4, 0) + bytes(4))[12:] == b"\1\0\0\0"


def test_whatever_a_kernel_sends_ends_in_an_error_or_a_message_and_leaves_no_descriptor() -> None:
    random.seed(7)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(400):
        line = Line()
        kernel, daemon = line.kernel, line.daemon
        data = bytearray(header(random.randrange(40), random.choice((0, 8, 40, 72, 255, 256, 257, 1 << 31))))
        data += random.randbytes(random.choice((0, 7, 8, 40, 72, 300)))
        if random.random() < 0.3:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        with open("/dev/null", "rb") as file:
            count = random.randrange(4)
            socket.send_fds(kernel, [bytes(data)], [file.fileno()] * count)
        kernel.shutdown(socket.SHUT_WR)
        daemon.shutdown(socket.SHUT_WR)
        try:
            line.relay.step()
        except VmmError:
            pass
        finally:
            line.close()
    assert len(os.listdir("/proc/self/fd")) == before
