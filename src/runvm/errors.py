"""The one tree of errors: what happened, then what to do; `__main__` alone turns it into stderr, --log and an exit
code.

Texts that callers match (containerd v1.6 `pkg/process/utils.go`, podman's `oci_conmon_linux.go`, docker's exit codes)
are constants here, each held by a test.
"""

from __future__ import annotations

import os

NO_SUCH_CONTAINER = "container does not exist"
ALREADY_EXISTS = "container with given ID already exists"
NOT_RUNNING = "container not running"


def reason(error: OSError) -> str:
    """What the system said, in Go's case: docker looks for "no such file or directory" and "permission denied"."""
    said = error.strerror or str(error) or type(error).__name__
    return said[:1].lower() + said[1:]


def words(error: Exception) -> str:
    """The text of an error for the user; what the system said comes after the file that it is about."""
    if not isinstance(error, OSError):
        return str(error)
    said = reason(error)
    return f"{os.fsdecode(error.filename)}: {said}" if isinstance(error.filename, str | bytes) else said


class Interrupted(BaseException):
    """Signal *number* has ended the command, which has undone what it had half made."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class RunvmError(Exception):
    """Something that the user is told in one line.

    *message* is lower case without a full stop; *do* is the next step for the reader, *details* further lines
    (the end of a log, say) that go to stderr and, joined, to the log record. *exit_code* is what the command ends with.
    """

    exit_code = 1

    def __init__(self, message: str, *, do: str = "", details: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.do = do
        self.details = details
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}: {self.do}" if self.do else self.message


class UsageError(RunvmError):
    """The command line is wrong: an unknown flag, a missing argument, a bad value."""


class ConfigError(RunvmError):
    """A configuration file, an annotation or an environment variable has an unknown key or a bad value."""


class SpecError(RunvmError):
    """config.json is missing, is not JSON, or has a bad field (named by its JSON path)."""


class UnsupportedError(RunvmError):
    """A thing that runc can do and a virtual machine can't, or that runvm doesn't do; the message names it."""


class ContainerNotFoundError(RunvmError):
    """No container of that id under this root."""

    def __init__(self) -> None:
        super().__init__(NO_SUCH_CONTAINER)


class ContainerExistsError(RunvmError):
    """A container of that id is there already."""

    def __init__(self) -> None:
        super().__init__(ALREADY_EXISTS)


class StateError(RunvmError):
    """The operation isn't allowed in the container's present status (OCI runtime spec, Lifecycle)."""


class NotRunningError(StateError):
    """The container's process, or its whole virtual machine, has ended; *reason* says why, *details* what was said
    last."""

    def __init__(self, reason: str = "", details: str = "") -> None:
        super().__init__(NOT_RUNNING, do=reason, details=details)


class VersionError(RunvmError):
    """The container's virtual machine was started by another version of runvm, which speaks another protocol."""

    def __init__(self, theirs: str, ours: str) -> None:
        super().__init__(
            f"the container was started by runvm {theirs}; this is {ours}, which can only show, kill and delete it",
            do="stop it and start it again",
        )


class HookError(RunvmError):
    """A hook of config.json failed or ran out of time."""


class CheckpointError(RunvmError):
    """A checkpoint's image is damaged, or doesn't fit this host or the bundle."""


class HostError(RunvmError):
    """The host lacks something: a program, a device, a permission; `do` names the command that fixes it."""


class KilledError(HostError):
    """A process that a virtual machine needs was killed: by somebody, or by the kernel for want of memory."""


class VmmError(RunvmError):
    """The hypervisor didn't start, answered with an error, or died."""


class GuestError(RunvmError):
    """The guest answered with an error, or broke the protocol."""


class DeadlineError(RunvmError):
    """A wait ran out of time; the message says what was waited for."""
