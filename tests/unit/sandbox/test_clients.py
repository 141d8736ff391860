"""The control socket: what one client does wrong fails its own request, and the others are served."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runvm import __version__
from runvm.errors import RunvmError
from runvm.linux.loop import Loop
from runvm.protocol import frames, messages, version
from runvm.protocol.frames import MESSAGE, VERSION, Frame
from runvm.protocol.messages import DeleteContainer, Done, Failed, Stats, Status
from runvm.sandbox.clients import Client, Clients, Handler, Reply
from runvm.sandbox.members import Task


class Server:
    """Clients in a loop, with a handler that serves Status and one that fails as it is told."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        self.error: Exception = RunvmError("no")
        self.gone: list[Client] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(8)
        handlers: dict[type, Handler] = {Status: self._status, DeleteContainer: self._fail}
        self.clients = Clients(self.loop, listener, handlers, on_frame=self._frame, on_gone=self.gone.append)
        self._open: list[socket.socket] = []

    def _status(self, client: Client, request: Status, reply: Reply) -> None:
        reply(Done({"well": True}))

    def _fail(self, client: Client, request: DeleteContainer, reply: Reply) -> None:
        raise self.error

    def _frame(self, task: Task, frame: Frame) -> None:
        raise AssertionError("nobody is attached")

    def connect(self) -> socket.socket:
        """A client."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(self.path)
        self._open.append(sock)
        return sock

    def turn(self) -> None:
        """Serve what has come."""
        for _ in range(4):
            self.loop.turn(0.02)

    def close(self) -> None:
        """End all of it."""
        self.clients.close()
        for sock in self._open:
            sock.close()
        self.turn()

    def ask(self, payload: bytes, sock: socket.socket | None = None) -> list[tuple[int, Any]]:
        """Send a message of *payload*; the numbered answers."""
        sock = sock or self.connect()
        sock.sendall(frames.encode(MESSAGE, 0, payload))
        self.turn()
        found = frames.Decoder(max_message=frames.MAX_MESSAGE).feed(sock.recv(65536))
        return [messages.decode(frame.payload) for frame in found]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One that serves."""
    made = Server(f"{tmp_path}/control")
    yield made
    made.close()


def is_well(server: Server, sock: socket.socket | None = None) -> bool:
    """Whether another request is served, by the same connection if *sock* is given."""
    return server.ask(messages.encode(Status(), 9), sock) == [(9, Done({"well": True}))]


DEEP = b'{"t": "Status", "n": 7, "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
BAD = {
    "no JSON": b"hello",
    "no object": b"[1]",
    "no type": b'{"n": 7}',
    "unknown type": b'{"t": "Wake", "n": 7}',
    "a type that is no text": b'{"t": {}, "n": 7}',
    "a number that is none": b'{"t": "Status", "n": "7"}',
    "a field that is missing": b'{"t": "DeleteContainer", "n": 7}',
    "a field of another type": b'{"t": "DeleteContainer", "n": 7, "container": []}',
    "a field too many": b'{"t": "Status", "n": 7, "more": 1}',
    "nested too deep": DEEP,
    "no UTF-8": b'{"t": "\xff"}',
    "a message that is the guest's to serve": messages.encode(messages.Hello("x"), 7),
    "a message that nobody serves here": messages.encode(Stats("c"), 7),
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_a_bad_message_is_answered_and_the_connection_goes_on(server: Server, payload: bytes) -> None:
    """Its number is repeated where it can be read."""
    sock = server.connect()
    ((number, answer),) = server.ask(payload, sock)
    assert isinstance(answer, Failed)
    try:
        known = json.loads(payload)["n"] == 7
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    assert number == (7 if known else 0)
    assert is_well(server, sock)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RunvmError("it doesn't work", do="try again"), "it doesn't work: try again"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: no such file or directory"),
        (KeyError("limits"), "internal error: KeyError: 'limits'"),
        (TypeError("no"), "internal error: TypeError: no"),
        (RecursionError(), "internal error: RecursionError"),
    ],
)
def test_a_request_that_fails_is_answered_whatever_is_raised(
    server: Server, error: Exception, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A fault of ours is in the log with its traceback; it is one request's, not the sandbox's."""
    server.error = error
    ((number, answer),) = server.ask(messages.encode(DeleteContainer("c"), 7))
    assert (number, isinstance(answer, Failed)) == (7, True)
    assert said in answer.error
    assert ("Traceback" in capfd.readouterr().err) == said.startswith("internal error")
    assert is_well(server)


@pytest.mark.parametrize(
    "sent",
    [
        frames.encode(frames.STDIN, 0, b"x"),
        frames.HEADER.pack(1 << 31, MESSAGE, 0),
        frames.HEADER.pack(1, 255, 0),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_who_breaks_the_protocol_is_cut_off_alone(server: Server, sent: bytes) -> None:
    """Others come and are served."""
    other = server.connect()
    sock = server.connect()
    sock.sendall(sent)
    server.turn()
    assert sock.recv(1) == b""
    assert len(server.gone) == 1
    assert is_well(server, other)


def test_a_command_of_another_version_is_told_so(server: Server) -> None:
    """Before anything that it asks for is misunderstood."""
    sock = server.connect()
    sock.sendall(frames.encode(VERSION, 0, b"77 9.9"))
    ((_, answer),) = server.ask(messages.encode(Status(), 1), sock)
    assert f"started by runvm {__version__}" in answer.error
    assert "runvm 9.9" in answer.error
    assert sock.recv(1) == b""
    sock = server.connect()
    sock.sendall(frames.encode(VERSION, 0, version.own()))
    assert is_well(server, sock)


def test_many_that_come_and_go_leave_nothing(server: Server) -> None:
    """Each is told to be gone once."""
    for _ in range(50):
        server.connect().close()
        server.turn()
    assert len(server.gone) == 50
    assert is_well(server)
