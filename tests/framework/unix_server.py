"""A server of the host's at a Unix socket's path, for tests whose clients are in a container."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class UnixServer:
    """Listens at *path*; each connection is served by `serve` in a thread of its own, until `close`."""

    def __init__(self, path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self._socket.bind(path)
        self._socket.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def serve(self, accepted: socket.socket) -> None:
        """Talk to a client, and close the connection."""
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(accepted,), daemon=True).start()

    def close(self) -> None:
        """Listen no more; the file stays."""
        if self._socket.fileno() >= 0:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
