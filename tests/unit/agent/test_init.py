"""Process 1 of a guest: whatever is wrong with one request, it is answered, and the next one is served."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runvm.agent import init, networks
from runvm.agent.runtime import Runtime
from runvm.linux import process, syscalls
from runvm.protocol import frames, messages
from runvm.protocol.interfaces import Interface, Network, to_json
from runvm.protocol.messages import (
    Create,
    Done,
    Exec,
    Failed,
    FindFile,
    Hello,
    Remove,
    RemoveNetwork,
    SetNetwork,
    Signal,
    Start,
    Stats,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]
ABSENT = "02:72:76:00:00:07"


def _limit_no_files(runtime: Runtime, limit: int) -> None:
    """In its place."""


class Guest:
    """An agent in namespaces of its own, without a kernel of its own."""

    def __init__(self) -> None:
        self.host, port = socket.socketpair()
        self.host.settimeout(20)
        self._decoder = frames.Decoder(max_message=frames.MAX_MESSAGE)
        self._number = 0
        self._pid = process.fork(lambda: self._serve(port.detach()))
        port.close()

    def _serve(self, port: int) -> None:
        self.host.close()
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWPID)

        def agent() -> None:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
            syscalls.mount("tmpfs", "/run", "tmpfs")
            # its end is the end of this process, and of no machine
            syscalls.reboot = lambda command: os._exit(0)
            networks._CONFIGURE_SECONDS = 0.3
            Runtime.limit_files = _limit_no_files  # type: ignore[method-assign,assignment]  # this process may lack the right to
            init._say = lambda text: None  # it would be the host's kernel's log
            init.Agent(port).run()

        os.waitpid(process.fork(agent), 0)

    def close(self) -> None:
        """End it."""
        process.end_child(self._pid, "the agent's parent")
        self.host.close()

    def hear(self) -> tuple[int, Any]:
        """The next message."""
        while True:
            data = self.host.recv(65536)
            assert data, "the agent has ended"
            for frame in self._decoder.feed(data):
                if frame.kind == frames.MESSAGE:
                    return messages.decode(frame.payload)

    def ask(self, request: Any) -> Done | Failed:
        """One request and its answer."""
        self._number += 1
        return self.send(messages.encode(request, self._number), self._number)

    def send(self, payload: bytes, number: int) -> Done | Failed:
        """The same for what no request looks like."""
        self.host.sendall(frames.encode(frames.MESSAGE, 0, payload))
        told, answer = self.hear()
        assert told == number
        assert isinstance(answer, Done | Failed)
        return answer


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """One that is up; each test finds it as the one before has left it."""
    made = Guest()
    assert isinstance(made.hear()[1], Hello)
    yield made
    made.close()


def network(nic: str) -> dict[str, Any]:
    """What the host says of a network with one interface."""
    found: dict[str, Any] = to_json(
        Network(interfaces=(Interface(2, "eth0", "02:00:00:00:00:02", 1500, True, True, 1000, 0, (), (), (), (), nic),))
    )
    return found


def create(spec: dict[str, Any], *, number: int = 0, interfaces: dict[str, Any] | None = None) -> Create:
    """Of a container."""
    return Create("c", 1, spec, {}, number, interfaces or {}, 0, 0, [], False, {})


def test_a_network_interface_that_comes_late_fails_its_request(guest: Guest) -> None:
    """It is awaited to a deadline; the containers that there are go on."""
    begun = time.monotonic()
    answer = guest.ask(SetNetwork(1, network(ABSENT)))
    assert isinstance(answer, Failed)
    assert ABSENT in answer.error
    assert time.monotonic() - begun < 10
    answer = guest.ask(create({"linux": {"namespaces": []}}, number=2, interfaces=network(ABSENT)))
    assert isinstance(answer, Failed)
    assert ABSENT in answer.error
    for number in (1, 2):
        assert guest.ask(RemoveNetwork(number)) == Done({})
    assert guest.ask(SetNetwork(3, to_json(Network()))) == Done({})
    assert guest.ask(RemoveNetwork(3)) == Done({})


REQUESTS = [
    create({}),
    create({"linux": 5}),
    create({"linux": {"namespaces": [{}]}, "process": {}}),
    SetNetwork(3, {"interfaces": 5}),
    SetNetwork(3, {"nonsense": []}),
    Start("nobody"),
    Stats("nobody"),
    FindFile("nobody", "/file"),
    Exec("nobody", 1, {}, 0, 0, [], "", False),
    Signal("nobody", 1, 9, False),
    Signal("nobody", 1, 9999, True),
    Remove("nobody"),
    Hello("a message of its own"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_that_makes_no_sense_is_answered(guest: Guest, request_: Any) -> None:
    """Failed or, where nothing is to do, Done; then the next is served."""
    guest.ask(request_)
    answer = guest.ask(Stats("nobody"))
    assert isinstance(answer, Failed)
    assert "nobody" in answer.error


@pytest.mark.parametrize("payload", [b"{", b"[]", b'{"t": "Wake", "n": 5}', b'{"t": "Start", "n": 5}', b"[" * 50_000])
def test_a_message_that_is_none_is_answered(guest: Guest, payload: bytes) -> None:
    """With its number where that can be read."""
    assert isinstance(guest.send(payload, 5 if b"5" in payload else 0), Failed)
    assert isinstance(guest.ask(Stats("nobody")), Failed)
