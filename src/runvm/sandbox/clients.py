"""The control socket of a VM: connections of commands and shims. Each request goes to the handler of its type, and what
one client does wrong fails that request, never the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runvm.errors import RunvmError, words
from runvm.linux.loop import IN
from runvm.log import log
from runvm.protocol import messages, version
from runvm.protocol.connection import Connection
from runvm.protocol.frames import MESSAGE, VERSION, Frame, FrameError
from runvm.protocol.messages import Done, Failed, MessageError

if TYPE_CHECKING:
    import socket

    from runvm.linux.loop import Loop
    from runvm.sandbox.members import Task

Reply = Callable[[Done | Failed], None]


class Client:
    """A connection: a command's, or after `Attach` a shim's, which has a *task*. *creating* is the container that it
    has asked for and hasn't been told of."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.task: Task | None = None
        self.creating = ""

    def reply(self, number: int, answer: Done | Failed) -> None:
        """Answer request *number*."""
        if self.connection is not None:
            self.connection.send(MESSAGE, 0, messages.encode(answer, number))

    def close(self) -> None:
        """End the connection."""
        if self.connection is not None:
            self.connection.close()


Handler = Callable[[Client, Any, Reply], None]


class Clients:
    """Takes connections of *listener*. *handlers* serve requests by their type, *on_frame* gets what a shim sends for
    its task, *on_gone* the client whose connection has closed."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        handlers: dict[type, Handler],
        *,
        on_frame: Callable[[Task, Frame], None],
        on_gone: Callable[[Client], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._handlers = handlers
        self._on_frame = on_frame
        self._on_gone = on_gone
        listener.setblocking(False)
        loop.watch(listener.fileno(), IN, self._accept)

    def close(self) -> None:
        """Take no more connections."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as error:  # no descriptors are left: the connection waits
            log.warning(f"a connection has to wait: {error}")
            self._loop.rest(self._listener.fileno())
            return
        client = Client()
        client.connection = Connection(
            self._loop,
            sock.detach(),
            on_frame=lambda frame: self._frame(client, frame),
            on_close=lambda reason: self._closed(client),
        )

    def _closed(self, client: Client) -> None:
        client.connection = None
        self._on_gone(client)

    def _frame(self, client: Client, frame: Frame) -> None:
        if client.task is not None:
            self._on_frame(client.task, frame)
        elif frame.kind == VERSION:
            error = version.mismatch(frame.payload)
            if error:
                client.reply(0, Failed(error))
                client.close()
        elif frame.kind != MESSAGE:
            raise FrameError("a stream before its Attach")
        else:
            self._request(client, frame.payload)

    def _request(self, client: Client, payload: bytes) -> None:
        try:
            number, request = messages.decode(payload)
        except MessageError as error:
            client.reply(error.number, Failed(str(error)))
            return
        handler = self._handlers.get(type(request))
        try:
            if handler is None:
                raise RunvmError(f"the supervisor doesn't serve {type(request).__name__}")
            handler(client, request, lambda answer: client.reply(number, answer))
        except (RunvmError, OSError) as error:
            client.reply(number, Failed(words(error)))
        except Exception as error:  # one client's request, whatever is wrong with it, isn't the end of the others
            import traceback

            log.error(f"internal error: {type(error).__name__}: {error}", traceback.format_exc())
            client.reply(number, Failed(f"internal error: {type(error).__name__}: {error}"))
