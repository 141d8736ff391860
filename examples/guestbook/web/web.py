"""A guest book: entries in PostgreSQL, a count of visits in Redis.

GET / shows both and which replica answers, POST / adds an entry, GET /health says whether both stores answer.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
import redis

PORT = 8000
MAX_ENTRY = 1000
cache = redis.Redis.from_url(os.environ["CACHE"], socket_timeout=10)


def database() -> psycopg.Connection:
    """A connection, committed and closed at the end of its `with`."""
    return psycopg.connect(os.environ["DATABASE"], connect_timeout=10)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        self.guarded(self.read)

    def do_POST(self) -> None:
        self.guarded(self.add)

    def guarded(self, action: Callable[[], None]) -> None:
        """Run *action*; 503 where a store doesn't answer, so that the proxy asks another replica."""
        try:
            action()
        except (psycopg.Error, redis.RedisError) as error:
            self.send_error(503, "a store doesn't answer", str(error))

    def read(self) -> None:
        """GET."""
        if self.path == "/health":
            with database() as connection:
                connection.execute("SELECT 1")
            cache.ping()
            self.answer({"status": "ok"})
            return
        with database() as connection:
            rows = connection.execute("SELECT text FROM entries ORDER BY id").fetchall()
        visits = cache.incr("visits")
        self.answer({"replica": socket.gethostname(), "visits": visits, "entries": [text for (text,) in rows]})

    def add(self) -> None:
        """POST."""
        length = int(self.headers.get("Content-Length", "0"))
        if not 0 < length <= MAX_ENTRY:
            self.send_error(400, f"an entry has 1 to {MAX_ENTRY} bytes")
            return
        text = self.rfile.read(length).decode(errors="replace").replace("\0", "")
        with database() as connection:
            connection.execute("INSERT INTO entries (text) VALUES (%s)", (text,))
        self.answer({"replica": socket.gethostname(), "added": text})

    def answer(self, body: dict[str, object]) -> None:
        """Send *body* as JSON."""
        data = (json.dumps(body) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Make the table, where it isn't there, and serve until SIGTERM, which PID 1 has to ask for."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    with database() as connection:
        # replicas start at once, and CREATE TABLE IF NOT EXISTS alone isn't safe against that
        connection.execute("SELECT pg_advisory_xact_lock(1)")
        connection.execute("CREATE TABLE IF NOT EXISTS entries (id serial PRIMARY KEY, text text NOT NULL)")
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
