"""The gate at which a new shim waits for the command that has forked it: a pair of sockets that keep messages apart.
The command tells it by them what to do, and hears of it; where the command ends, the shim ends, too.

No command waits for ever: somebody may have stopped the shim, or have frozen its cgroup.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from runvm.container import host_view
from runvm.errors import DeadlineError, HostError, words
from runvm.linux import process
from runvm.records import NamedTuple

if TYPE_CHECKING:
    import socket

    from runvm.container.hook_view import HookMount

VIEW, VIEW_FOR_HOOKS, HOOKS_DONE, GO = b"m", b"v", b"h", b"g"
"""What a command tells a shim."""
_PID, READY, _DONE, _PART, _FAILED, STREAMS_TAKEN = b"p", b"r", b"m", b"n", b"e", b"s"
"""What it hears of it."""
_ENDED = "the container's process on the host ended"
_PART_BYTES = 64 << 10
"""Of an answer; a message may have no more than a socket holds, and the mounts of a container are many at times."""
MADE_SECONDS = 10.0
VIEW_SECONDS = 60.0
"""How long a shim may take for what is a matter of the kernel's alone, and for its mounts."""


class StartedShim(NamedTuple):
    """A shim: its pid on the host, and the descriptor by which it is told to go on (or, closed, to end)."""

    pid: int
    gate: int


# --- the shim


def tell_pid(gate: socket.socket, pid: int) -> None:
    """The shim has been forked, and is *pid* to the command."""
    gate.sendall(_PID + b"%d" % pid)


def tell_failure(gate: socket.socket, error: OSError) -> None:
    """It couldn't be made."""
    gate.sendall(_FAILED + f"{error.errno} {words(error)}".encode(errors="replace"))


def answer(gate: socket.socket, found: Any) -> None:
    """What an order to show something has led to, as JSON."""
    data = json.dumps(found).encode()
    last = (len(data) - 1) // _PART_BYTES
    for number in range(last + 1):
        part = data[number * _PART_BYTES : (number + 1) * _PART_BYTES]
        gate.sendall((_DONE if number == last else _PART) + part)


def refuse(gate: socket.socket, error: Exception) -> None:
    """Why an order couldn't be carried out."""
    gate.sendall(_FAILED + str(error).encode(errors="replace")[:32768])


# --- the command


def await_made(gate: socket.socket, parent: int) -> StartedShim:
    """Until the shim that the child *parent* forks waits at the other end of *gate*; that child is reaped. Raises
    OSError where the shim can't be made, DeadlineError, and closes *gate* then."""
    deadline = time.monotonic() + MADE_SECONDS
    pid = 0
    ready = False
    try:
        while not (pid and ready):
            data = _receive(gate, deadline, _late(pid, MADE_SECONDS, "to enter its namespaces and cgroup"))
            if data[:1] == _PID:
                pid = int(data[1:])
            elif data[:1] == READY:
                ready = True
            else:
                number, _, text = data[1:].decode().partition(" ")
                raise OSError(int(number or 5), text or _ENDED)
    except BaseException as error:
        gate.close()
        if isinstance(error, DeadlineError) and pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.end_child(parent, "the process that makes the shim")
        raise
    if process.wait_child(parent, deadline=deadline) is None:
        process.end_child(parent, "the process that makes the shim")
    return StartedShim(pid, gate.detach())


def show(started: StartedShim, *, for_hooks: bool = False) -> host_view.Made:
    """Have a shim that waits at its gate make its plan's view; what host_view.make() says. *for_hooks* it is shown to
    them until end_hooks().

    Raises: HostError, DeadlineError, OSError where it has died.
    """
    places, home = _ask(started, VIEW_FOR_HOOKS if for_hooks else VIEW, "to mount the container's file systems")
    return host_view.Made({number: host_view.ViewPlace(*place) for number, place in places}, home)


def end_hooks(started: StartedShim) -> list[HookMount]:
    """Hooks have run: what they have mounted. Raises: HostError, DeadlineError, OSError where the shim has died."""
    from runvm.container.hook_view import HookMount

    found = _ask(started, HOOKS_DONE, "to take over what the container's hooks have mounted")
    return [HookMount(path, tuple(options)) for path, options in found]


def release(started: StartedShim) -> None:
    """Let a shim go on from its gate; returns when it has taken its streams over. Raises DeadlineError, OSError where
    it has died."""
    with _opened(started.gate) as gate:
        _order(gate, GO)
        late = _late(started.pid, MADE_SECONDS, "to take over its standard streams")
        if _receive(gate, time.monotonic() + MADE_SECONDS, late) != STREAMS_TAKEN:
            raise OSError(5, _ENDED)


def _ask(started: StartedShim, order: bytes, purpose: str) -> Any:
    deadline = time.monotonic() + VIEW_SECONDS
    late = _late(started.pid, VIEW_SECONDS, purpose)
    data = b""
    with _opened(os.dup(started.gate)) as gate:
        _order(gate, order)
        while (part := _receive(gate, deadline, late))[:1] == _PART:
            data += part[1:]
    if part[:1] == _DONE:
        return json.loads(data + part[1:])
    if part[:1] == _FAILED:
        raise HostError(part[1:].decode(errors="replace"))
    raise OSError(5, _ENDED)


def _opened(fd: int) -> socket.socket:
    import socket

    return socket.socket(fileno=fd)


def _order(gate: socket.socket, order: bytes) -> None:
    with suppress(BrokenPipeError):  # it has ended, which _receive() tells
        gate.sendall(order)


def _receive(gate: socket.socket, deadline: float, late: str) -> bytes:
    """The next message; none where the shim has ended. Raises DeadlineError with the text *late*."""
    gate.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        return gate.recv(1 + _PART_BYTES)
    except TimeoutError:
        raise DeadlineError(late) from None
    except ConnectionError:
        return b""


def _late(pid: int, seconds: float, purpose: str) -> str:
    which = f" (pid {pid})" if pid else ""
    return f"timed out after {seconds:.0f} s waiting for the container's process on the host{which} {purpose}"
