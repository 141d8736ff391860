"""The packets between guest and host, and what is read of a DNS message: right, or refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runvm.protocol import dns
from runvm.protocol.dns import Packet, PacketError

QUESTION = b"\3web\7example\0\0\1\0\1"


def message(*, edns: int = 0, number: int = 7, flags: int = 0x0100) -> bytes:
    opt = struct.pack(">BHHIH", 0, 41, edns, 0, 0) if edns else b""
    return struct.pack(">HHHHHH", number, flags, 1, 0, 0, int(bool(edns))) + QUESTION + opt


@pytest.mark.parametrize("packet", [Packet(0, dns.UDP, b""), Packet(0xFFFFFFFF, dns.TCP, message())])
def test_a_packet_stands_its_way(packet: Packet) -> None:
    assert dns.unpack(dns.pack(packet)) == packet


@pytest.mark.parametrize("data", [b"", b"\0\0\0\1", b"\0\0\0\1\2", b"\0\0\0\1\0" + bytes(11), bytes(65537)])
def test_what_is_no_packet_is_refused(data: bytes) -> None:
    with pytest.raises(PacketError):
        dns.unpack(data)


def test_the_longest_message_fits_in_a_frame() -> None:
    assert len(dns.pack(Packet(1, dns.TCP, bytes(dns.MAX_MESSAGE)))) == 65536


@pytest.mark.parametrize(("edns", "limit"), [(0, 512), (100, 512), (1232, 1232), (65535, 65535)])
def test_the_askers_limit_is_read(edns: int, limit: int) -> None:
    assert dns.udp_limit(message(edns=edns)) == limit


def test_a_failure_repeats_number_and_question() -> None:
    failed = dns.failure(message(edns=1232))
    assert struct.unpack_from(">HHHHHH", failed) == (7, 0x8182, 1, 0, 0, 0)
    assert failed[12:] == QUESTION


def test_a_truncated_answer_has_the_question_and_an_opt_record_where_the_query_had() -> None:
    answer = message(flags=0x8180) + bytes(600)
    short = dns.truncated(answer, edns=False)
    assert struct.unpack_from(">HHHHHH", short) == (7, 0x8380, 1, 0, 0, 0)
    assert short[12:] == QUESTION
    assert len(dns.truncated(answer, edns=True)) == len(short) + 11


@given(st.binary(min_size=12, max_size=300))
def test_any_message_is_handled(data: bytes) -> None:
    """No error but our own, however broken it is."""
    assert 512 <= dns.udp_limit(data) <= 65535
    assert dns.failure(data)[:2] == data[:2]
    assert dns.truncated(data, edns=True)[:2] == data[:2]
