"""Sandboxes on disk: `<state_dir>/sandboxes/<id>/` with the control socket and the identities of a VM's processes.

What is written here lets any command find, ask and, after a crash, clear a sandbox; nothing in it is believed
without a look at /proc.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runvm import __version__
from runvm.errors import DeadlineError, GuestError, NotRunningError, VersionError
from runvm.linux import files, locking, process, sockets
from runvm.linux.process import Identity
from runvm.protocol import frames, messages, version
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ANSWER_SECONDS = 60.0
"""How long a command waits for a supervisor's answer: longer than anything that the supervisor itself waits for."""


LOCK_SECONDS = 90.0
"""How long a command waits for others that come to or leave the same virtual machine."""
_VERSION = "version"
"""The file with the supervisor's protocol.version.own()."""


class Sandbox(NamedTuple):
    """A sandbox's name and directory."""

    name: str
    directory: str


def locate(state_dir: str, name: str) -> Sandbox:
    """The sandbox called *name*, there or not."""
    return Sandbox(name, f"{state_dir}/sandboxes/{name}")


def new(state_dir: str) -> Sandbox:
    """A new sandbox, of which nothing is there yet."""
    return locate(state_dir, os.urandom(6).hex())


def listen(sandbox: Sandbox) -> socket.socket:
    """A new sandbox's directory and control socket, made before the supervisor is forked: who connects never has to
    poll for it."""
    files.make_directories(sandbox.directory, 0o700)
    with open(f"{sandbox.directory}/{_VERSION}", "wb", opener=files.private) as file:
        file.write(version.own())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sockets.bind(listener, f"{sandbox.directory}/control")
    listener.listen(128)
    return listener


def connect(sandbox: Sandbox) -> socket.socket:
    """A connection to the supervisor. Raises NotRunningError where there is none any more, VersionError for one of
    another version."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_SECONDS)
    try:
        sockets.connect(connection, f"{sandbox.directory}/control")
    except OSError:
        connection.close()
        raise NotRunningError() from None
    try:
        _check_version(sandbox)
        connection.sendall(frames.encode(frames.VERSION, 0, version.own()))
    except OSError:
        connection.close()
        raise NotRunningError() from None
    except VersionError:
        connection.close()
        raise
    return connection


def _check_version(sandbox: Sandbox) -> None:
    """Raise VersionError where the sandbox's supervisor is of another version, OSError where it has gone."""
    try:
        with open(f"{sandbox.directory}/{_VERSION}", "rb") as file:
            told = file.read(64)
    except FileNotFoundError:
        os.stat(sandbox.directory)  # gone meanwhile? else it is of a runvm that told none
        told = b""
    number, release = version.parse(told)
    if number != version.PROTOCOL:
        raise VersionError(release, __version__)


@contextmanager
def locked(sandbox: Sandbox) -> Iterator[bool]:
    """Hold the sandbox's lock: who comes to it (from finding it to being recorded there) and who leaves it do so one at
    a time. False where the sandbox has gone. Raises DeadlineError."""
    try:
        fd = os.open(sandbox.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        late = f"timed out after {LOCK_SECONDS:.0f} s waiting for another command on the virtual machine {sandbox.name}"
        locking.lock(fd, deadline=time.monotonic() + LOCK_SECONDS, timeout_message=late)
        try:
            there = os.path.samestat(os.stat(sandbox.directory), os.fstat(fd))
        except FileNotFoundError:
            there = False
        yield there
    finally:
        os.close(fd)


def call(sandbox: Sandbox, request: Any, *, timeout: float = ANSWER_SECONDS) -> messages.Json:
    """Send one request to the supervisor and return its result. Raises NotRunningError, GuestError, DeadlineError."""
    with begin(sandbox, request) as connection:
        return finish(connection, request, timeout=timeout)


def begin(sandbox: Sandbox, request: Any) -> socket.socket:
    """Send one request to the supervisor: a connection for finish(). Raises NotRunningError."""
    connection = connect(sandbox)
    try:
        connection.sendall(frames.encode(frames.MESSAGE, 0, messages.encode(request, 1)))
    except OSError:
        connection.close()
        raise NotRunningError() from None
    return connection


def finish(connection: socket.socket, request: Any, *, timeout: float = ANSWER_SECONDS) -> messages.Json:
    """The answer to the *request* of begin(). Raises as call() does."""
    deadline = time.monotonic() + timeout
    decoder = frames.Decoder(max_message=frames.MAX_MESSAGE)
    try:
        while True:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = connection.recv(65536)
            if not data:
                raise NotRunningError()
            for frame in decoder.feed(data):
                _, answer = messages.decode(frame.payload, frozenset({"Done", "Failed"}))
                if isinstance(answer, messages.Failed):
                    message, _, details = answer.error.partition("\n")
                    raise GuestError(message, details=details)
                result: messages.Json = answer.result
                return result
    except TimeoutError:
        raise DeadlineError(
            f"timed out after {timeout:.0f} s waiting for the virtual machine's answer to {type(request).__name__}"
        ) from None
    except (ConnectionError, BrokenPipeError):
        raise NotRunningError() from None
    except (frames.FrameError, messages.MessageError) as error:
        raise GuestError(f"the supervisor's answer makes no sense: {error}") from error


def record(sandbox: Sandbox, processes: dict[str, int]) -> None:
    """Write down the processes of a sandbox (role → pid), each with its start time."""
    body = {role: identity for role, pid in processes.items() if (identity := process.identity(pid)) is not None}
    temporary = f"{sandbox.directory}/.processes.json"
    with open(temporary, "w") as file:
        json.dump(body, file)
    os.rename(temporary, f"{sandbox.directory}/processes.json")


def processes(sandbox: Sandbox) -> dict[str, Identity]:
    """What record() wrote; empty where there is nothing."""
    try:
        with open(f"{sandbox.directory}/processes.json") as file:
            return {str(role): Identity(int(pid), int(start)) for role, (pid, start) in json.load(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def clear(sandbox: Sandbox, *, timeout: float = 10.0) -> None:
    """Kill whatever is left of a sandbox and remove its directory. Raises DeadlineError naming what doesn't end."""
    deadline = time.monotonic() + timeout
    recorded = processes(sandbox)
    for identity in recorded.values():
        process.kill(identity, signal.SIGKILL)
    for role, identity in recorded.items():
        if not process.wait_gone(identity, deadline=deadline):
            raise DeadlineError(
                f"timed out waiting for the end of the {role} (pid {identity.pid}) of sandbox {sandbox.name}"
            )
    files.remove_tree(sandbox.directory)
