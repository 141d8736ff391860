"""What the tests ask of Docker's and Podman's command line alike."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from framework.process import Process, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.process import Result
    from framework.terminal import Terminal


class Engine:
    """The commands that both have, in the same words; a subclass knows how to call its own."""

    def argv(self, *args: str) -> list[str]:
        """The client's command line."""
        raise NotImplementedError

    def call(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> Result:
        """Run one command."""
        raise NotImplementedError

    def ok(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> str:
        """Run one that must succeed; its output."""
        raise NotImplementedError

    def start_client(self, *args: str) -> Process:
        """A client's command without waiting."""
        return Process(self.argv(*args))

    def inspect(self, container: str) -> dict[str, Any]:
        """What `inspect` says."""
        found: list[dict[str, Any]] = json.loads(self.ok("inspect", container))
        return found[0]

    def containers(self) -> set[str]:
        """All ids, stopped ones too."""
        return set(self.ok("ps", "--all", "--quiet", "--no-trunc").split())

    def wait_log(self, container: str, wanted: str, timeout: float = 30) -> str:
        """Until *wanted* is in the container's logs."""

        def there() -> str:
            result = self.call("logs", container)
            text = (result.stdout + result.stderr).decode(errors="replace")
            return text if wanted in text else ""

        return wait_until(there, timeout=timeout, what=f"{wanted!r} in the logs of {container}", interval=0.2)


def unmount_below(directory: str) -> None:
    """Whatever is still mounted there."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        mounted = [line.split()[1] for line in file if line.split()[1].startswith(directory + "/")]
    for path in reversed(mounted):
        subprocess.run(["umount", path], check=False, timeout=10, capture_output=True)


class _Opens(Protocol):
    def open(self) -> None: ...

    def close(self) -> None: ...


T = TypeVar("T", bound=_Opens)


@contextmanager
def opened(engine: T) -> Iterator[T]:
    """The engine, running; closed afterwards even where it didn't come up."""
    try:
        engine.open()
        yield engine
    finally:
        engine.close()


def use_terminal(terminal: Terminal, *, timeout: float) -> None:
    """In a shell with the prompt `$ ` on 37 x 111: size and its change, ctrl-C is 130; the shell ends with 6."""
    terminal.expect(b"$ ", timeout=timeout)
    # The client sets the size a moment after the start
    terminal.send(b'sh -c \'while [ "$(stty size)" != "37 111" ]; do sleep 0.1; done; echo si""zed\'\n')
    terminal.expect(b"sized\r\n")
    terminal.send(b'sh -c \'trap "stty size" WINCH; echo se""t; while :; do sleep 0.05; done\'\n')
    terminal.expect(b"set\r\n")
    terminal.resize(rows=50, columns=140)
    terminal.expect(b"50 140\r\n")
    terminal.send(b"\x03")
    terminal.send(b"echo co''de $?\n")
    terminal.expect(b"code 130\r\n")
    terminal.send(b"exit 6\n")
