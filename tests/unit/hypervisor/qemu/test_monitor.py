"""QEMU's monitor in the supervisor's loop, against a peer that speaks QMP, and not always in time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from runvm.errors import VmmError
from runvm.hypervisor.qemu import monitor
from runvm.hypervisor.qemu.monitor import Monitor, QmpCommand
from runvm.hypervisor.qemu.qmp import Qmp
from runvm.linux.loop import Loop


class Peer:
    """QEMU's end: what it was told, and what it says."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        self.sock.settimeout(5)
        self.loop = Loop()
        self.qmp = Qmp(ours)
        self.monitor = Monitor(self.loop, self.qmp)
        self.ended: list[tuple[list[Any], str]] = []
        self.fds: list[int] = []

    def run(self, *commands: QmpCommand) -> list[dict[str, Any]]:
        """Have the monitor send *commands*; what QEMU gets."""
        self.monitor.run(list(commands), lambda results, error: self.ended.append((results, str(error or ""))))
        return self.heard(len(commands))

    def heard(self, count: int) -> list[dict[str, Any]]:
        """So many commands, as QEMU reads them."""
        found: list[dict[str, Any]] = []
        text = ""
        while len(found) < count:
            data, fds, _, _ = socket.recv_fds(self.sock, 65536, 8)
            self.fds += fds
            text += data.decode()
            while text:
                message, end = json.JSONDecoder().raw_decode(text)
                found.append(message)
                text = text[end:].lstrip()
        return found

    def say(self, *messages: dict[str, Any]) -> None:
        """Answers and events, which the monitor then takes."""
        self.sock.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))
        self.loop.turn(1)

    def close(self) -> None:
        """Both ends."""
        for fd in self.fds:
            os.close(fd)
        self.sock.close()
        self.qmp.sock.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A monitor and its QEMU."""
    made = Peer()
    yield made
    made.close()


def returned(sent: dict[str, Any], result: Any) -> dict[str, Any]:
    """The answer to a command."""
    return {"return": result, "id": sent["id"]}


def test_results_come_in_the_commands_order_and_events_are_no_answers(peer: Peer) -> None:
    """Nothing waits meanwhile: the answers are taken as they come, in parts."""
    first, second = peer.run(QmpCommand("one", {"a": 1}), QmpCommand("two"))
    assert [(sent["execute"], sent["arguments"]) for sent in (first, second)] == [("one", {"a": 1}), ("two", {})]
    peer.say(returned(first, {"x": 1}), {"event": "STOP", "data": {}})
    assert peer.ended == []
    peer.say(returned(second, []))
    assert peer.ended == [([{"x": 1}, []], "")]


def test_a_descriptor_goes_with_its_command(peer: Peer) -> None:
    """A tap's, say."""
    reader, writer = os.pipe()
    (sent,) = peer.run(QmpCommand("getfd", {"fdname": "nic1"}, writer))
    os.close(writer)
    assert len(peer.fds) == 1
    os.write(peer.fds[0], b"x")
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    peer.say(returned(sent, {}))
    assert peer.ended == [([{}], "")]


def test_the_first_error_is_told_once_all_are_answered(peer: Peer) -> None:
    """QEMU goes on with the commands that follow one that it refuses."""
    first, second, third = peer.run(QmpCommand("one"), QmpCommand("two"), QmpCommand("three"))
    peer.say(returned(first, {}), {"error": {"class": "GenericError", "desc": "no such bus"}, "id": second["id"]})
    assert peer.ended == []
    peer.say({"error": {"class": "GenericError", "desc": "something else"}, "id": third["id"]})
    assert peer.ended == [([], "QEMU refused: no such bus")]


def test_two_requests_at_once_get_their_own_answers(peer: Peer) -> None:
    """Each has its own error or results."""
    (first,) = peer.run(QmpCommand("one"))
    (second,) = peer.run(QmpCommand("two"))
    peer.say({"error": {"desc": "no"}, "id": first["id"]}, returned(second, 2))
    assert peer.ended == [([], "QEMU refused: no"), ([2], "")]


def test_a_late_answer_fails_its_own_request_only(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy host is slow for a while: a container's network can be plugged in after it."""
    monkeypatch.setattr(monitor, "_SECONDS", 0.05)
    (late,) = peer.run(QmpCommand("device_add"))
    peer.loop.turn(1)
    assert peer.ended == [([], "timed out after 0 s waiting for QEMU's answer to 'device_add'")]
    (next_one,) = peer.run(QmpCommand("netdev_add"))
    peer.say(returned(late, "late"), returned(next_one, "in time"))
    assert peer.ended[1:] == [(["in time"], "")]


@pytest.mark.parametrize(
    "noise", [b"no JSON\n", b"[1]\n", b'{"return": 1}\n', b'{"return": 1, "id": "x"}\n', b'{"id": 99}\n']
)
def test_what_is_no_answer_answers_nothing(peer: Peer, noise: bytes) -> None:
    """At worst it is the monitor's end, told to who waits, and to who asks later."""
    (sent,) = peer.run(QmpCommand("one"))
    peer.sock.sendall(noise)
    peer.loop.turn(1)
    if peer.ended:
        assert "no JSON" in peer.ended[0][1]
        peer.monitor.run([QmpCommand("two")], lambda results, error: peer.ended.append((results, str(error or ""))))
        assert peer.ended[1] == peer.ended[0]
    else:
        peer.say(returned(sent, 1))
        assert peer.ended == [([1], "")]


def test_when_qemu_goes_all_requests_fail_at_once(peer: Peer) -> None:
    """Nobody waits for its deadline."""
    peer.run(QmpCommand("one"), QmpCommand("two"))
    peer.run(QmpCommand("three"))
    peer.sock.shutdown(socket.SHUT_RDWR)
    peer.loop.turn(1)
    assert [error for _, error in peer.ended] == ["QEMU has closed its monitor"] * 2
    assert peer.ended[0][0] == []


def test_a_qemu_that_reads_nothing_is_given_up(peer: Peer) -> None:
    """The supervisor's loop doesn't wait for it to read."""
    errors: list[VmmError] = []
    for _ in range(100):
        peer.monitor.run(
            [QmpCommand("x", {"y": "z" * 65536})], lambda results, error: errors.append(error or VmmError(""))
        )
        if errors:
            break
    assert "QEMU doesn't take 'x'" in str(errors[0])
