"""--log, --log-format, --debug: the log file that engines parse, warnings on stderr, step timings, progress for people.

The JSON lines are those that containerd's go-runc and conmon parse (`level`, `msg`, `time`). The standard library's
logging module costs 8 ms to import and is on every start path, hence these few lines.
"""

from __future__ import annotations

import os
import sys
import time

_MAX_BYTES = 256 << 10
_MAX_BYTES_DEBUG = 16 << 20


class Log:
    """Where a command's messages go: a file (text or JSON lines), and stderr. One per process, inherited by a fork."""

    def __init__(self) -> None:
        self.path = ""
        self.format = "text"
        self.debug_on = False
        self.errors_only = False
        self.max_bytes = 0
        """Of the file that stderr is; 0: it may grow."""
        self._full = False
        self._trace = os.environ.get("RUNVM_TRACE", "")
        self._started = time.monotonic()

    def keep_to_stderr(self) -> None:
        """Write there alone, and not without end: it is a supervisor's log, in memory (/run), and a guest can make it
        say much."""
        self.path = ""
        self.max_bytes = _MAX_BYTES_DEBUG if self.debug_on else _MAX_BYTES

    def configure(self, *, path: str, format: str, debug: bool, errors_only: bool = False) -> None:
        """*path* is the log file, appended to ('' = stderr only); *format* is 'text' or 'json'."""
        self.path, self.format, self.debug_on, self.errors_only = path, format, debug, errors_only

    def debug(self, message: str) -> None:
        """A step that is done now. With --debug a line that carries the milliseconds since the command began.

        With RUNVM_TRACE=FILE in the environment, FILE gets it of all processes of a start: seconds of the monotonic
        clock, pid, message. A process that no longer sees the file (the shim, once it waits) is left out.
        """
        if self.debug_on:
            self._write("debug", f"{(time.monotonic() - self._started) * 1000:.1f}ms {message}")
        if self._trace:
            self._append(self._trace, f"{time.monotonic():.6f} {os.getpid()} {message}\n")

    def info(self, message: str) -> None:
        """For the log file only."""
        self._write("info", message)

    def warning(self, message: str) -> None:
        """What the user should know though the command goes on; stderr has it where no log file takes it."""
        self._write("warning", message)

    def error(self, message: str, details: str = "") -> None:
        """The command's failure: in the log file and on stderr, as runc does it."""
        if self._write("error", f"{message}: {details}" if details else message):
            self._stderr(printable(f"runvm: {message}\n" + (details + "\n" if details else "")))

    def _write(self, level: str, message: str) -> bool:
        """Whether the log file has it. Else stderr does: engines remove the file's directory before the last delete."""
        if self.errors_only and level != "error":
            return False
        line = self._line(level, message)
        if self.path and self._append(self.path, line):
            return True
        if level != "info":
            plain = printable(f"runvm: {'' if level == 'error' else level + ': '}{message}\n")
            self._stderr(line if self.format == "json" or self.debug_on else plain)
        return False

    def _stderr(self, text: str) -> None:
        if self.max_bytes and not self._fits(text):
            if self._full:
                return
            self._full = True
            text = f"runvm: warning: this log has reached {self.max_bytes >> 10} KiB: nothing more is written to it\n"
        _stderr(text)

    def _fits(self, text: str) -> bool:
        """Told by the file, since children write there as well."""
        try:
            size = os.fstat(2).st_size
        except OSError:
            return False
        return not self._full and size + len(text.encode(errors="replace")) <= self.max_bytes

    def _append(self, path: str, line: str) -> bool:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return False
        try:
            os.write(fd, line.encode(errors="replace"))
        except OSError:  # the disk is full
            return False
        finally:
            os.close(fd)
        return True

    def _line(self, level: str, message: str) -> str:
        message = printable(message)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.format == "json":
            import json

            # without spaces, as Go has it: callers may look for "level":"error"
            return json.dumps({"level": level, "msg": message, "time": stamp}, separators=(",", ":")) + "\n"
        return f'time="{stamp}" level={level} msg={_quoted(message)}\n'


log = Log()


def printable(text: str) -> str:
    """*text* without control characters but line ends and tabs: what a guest, or a file's name, may say ends on
    somebody's terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)


def _quoted(text: str) -> str:
    """*text* as logrus has a value in its text format: in quotes unless all of it is harmless."""
    if text and all(letter.isascii() and (letter.isalnum() or letter in "-._/@^+") for letter in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _stderr(text: str) -> None:
    try:
        os.write(2, text.encode(errors="replace"))
    except OSError:
        pass


def progress(message: str) -> None:
    """A line about long work, for a person: only where stderr is a terminal or --debug is on."""
    if log.debug_on or sys.stderr is not None and sys.stderr.isatty():
        _stderr(f"runvm: {message}\n")
