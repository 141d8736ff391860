"""What a command and a new shim tell each other: of any length, and never waited for without end."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from runvm.container import gate
from runvm.container.gate import StartedShim
from runvm.container.host_view import ViewPlace
from runvm.errors import DeadlineError, HostError
from runvm.linux import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[[Callable[[socket.socket], None]], StartedShim]


@pytest.fixture
def shim() -> Iterator[Make]:
    """Makes a process that does something with its end of the gate, and waits then."""
    made: list[StartedShim] = []

    def make(action: Callable[[socket.socket], None]) -> StartedShim:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def child() -> None:
            ours.close()
            action(theirs)
            signal.pause()

        made.append(StartedShim(process.fork(child), ours.detach()))
        theirs.close()
        return made[-1]

    yield make
    for each in made:
        process.end_child(each.pid, "the process in the shim's place")
        os.close(each.gate)


def test_an_answer_may_be_longer_than_a_message(
    shim: Make,
) -> None:
    """As that for thousands of mounts whose places have long names."""
    places = {number: ViewPlace(f"/{'x' * 200}/{number}", -1) for number in range(5000)}

    def action(door: socket.socket) -> None:
        assert door.recv(1) == gate.VIEW
        gate.answer(door, [[*places.items()], "/home"])

    made = gate.show(shim(action))
    assert made.places == places
    assert made.home == "/home"


def test_an_error_comes_with_its_text(shim: Make) -> None:
    """Also one that names a file whose name is no text."""

    def action(door: socket.socket) -> None:
        door.recv(1)
        gate.refuse(door, HostError("mkdir /\udcff: no"))

    with pytest.raises(HostError, match=r"mkdir /\?: no"):
        gate.show(shim(action))


def test_a_shim_that_has_ended_is_told_from_one_that_hangs(
    shim: Make,
) -> None:
    """At once."""
    with pytest.raises(OSError, match="the container's process on the host ended"):
        gate.show(shim(lambda door: door.close()))


def test_a_shim_that_hangs_is_named_with_what_it_was_to_do(shim: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has stopped it, say: the command ends."""
    monkeypatch.setattr(gate, "MADE_SECONDS", 0.2)
    monkeypatch.setattr(gate, "VIEW_SECONDS", 0.2)
    started = shim(lambda door: None)
    late = rf"^timed out after 0 s waiting for the container's process on the host \(pid {started.pid}\) to "
    with pytest.raises(DeadlineError, match=f"{late}mount the container's file systems$"):
        gate.show(started)
    with pytest.raises(DeadlineError, match=f"{late}take over what the container's hooks have mounted$"):
        gate.end_hooks(started)
    with pytest.raises(DeadlineError, match=f"{late}take over its standard streams$"):
        gate.release(StartedShim(started.pid, os.dup(started.gate)))


def test_one_that_hangs_before_its_gate_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a cgroup that is frozen; and the child that has forked it is reaped."""
    monkeypatch.setattr(gate, "MADE_SECONDS", 0.3)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()

    def middle() -> None:
        ours.close()
        os.close(reader)
        gate.tell_pid(theirs, process.fork(lambda: signal.pause()))

    parent = process.fork(middle)
    theirs.close()
    os.close(writer)
    late = "timed out after 0 s waiting for the container's process on the host .pid [0-9]+. to enter its namespaces"
    with pytest.raises(DeadlineError, match=late):
        gate.await_made(ours, parent)
    assert os.read(reader, 1) == b"", "the shim, which has the other end as well, is there no more"
    os.close(reader)
    with pytest.raises(ChildProcessError):
        os.waitpid(parent, os.WNOHANG)
    assert ours.fileno() == -1
