"""The runtime under test and its containers, called as containerd calls them: argv, --log in JSON, a deadline each."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from framework import process
from framework.bundle import Bundle
from framework.process import Process, Result, wait_until
from framework.terminal import ConsoleSocket, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HYPERVISOR = os.environ.get("HYPERVISOR") or "qemu"
"""Not what a host would choose: what is tested has to be the same everywhere."""
"""The setting `hypervisor` that the tests run with; empty: its default."""
SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "src"))
BOOT_S = 60
"""How long a guest may take to boot, times process.FACTOR."""
_serial = itertools.count(1)

# The checkout's runvm as one executable file, which is what engines want. conmon passes next to no environment on,
# hence the configuration is named here.
_WRAPPER = """#!/usr/bin/python3
import os, sys
sys.path[0] = {source!r}
os.environ.setdefault("RUNVM_CONFIG", {config!r})
from runvm.__main__ import entry
sys.exit(entry())
"""


def has_capability(name: str) -> bool:
    """Whether the hypervisor that the tests run with has it (hypervisor.driver.Capabilities)."""
    from runvm.config import Config
    from runvm.hypervisor import drivers

    return bool(getattr(drivers.load(Config(hypervisor=HYPERVISOR)).capabilities, name))


class Runtime:
    """A runtime by name or path, with a --root of its own below *scratch*."""

    def __init__(self, name: str, scratch: str) -> None:
        self.scratch = scratch
        self.root = f"{scratch}/root"
        self.state_dir = f"{scratch}/state"
        self.config_file = f"{scratch}/config.toml"
        for path in (self.root, self.state_dir):
            os.makedirs(path, mode=0o711, exist_ok=True)
        self.name = os.path.basename(name)
        self.is_vm = self.name.startswith("runvm")
        self.path = self._wrapper() if name == "runvm" else shutil.which(name) or ""
        if not self.path:
            raise FileNotFoundError(f"--runtime {name}: no such program on PATH")
        # Emulated, a VM takes seconds to start, the very first one (which leaves a template) longer still
        self.timeout = 90.0 if self.is_vm else 30.0

    def argv(self, *args: str, log: str | None = None) -> list[str]:
        """The command for *args*, global flags first."""
        flags = ["--log", log, "--log-format", "json"] if log else []
        return [self.path, "--root", self.root, *flags, *args]

    def start(
        self,
        *args: str,
        stdin: bytes | int = b"",
        stdout: int | IO[bytes] = -1,
        stderr: int | IO[bytes] = -1,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        log: str | None = None,
    ) -> Process:
        """Begin a command and don't wait: for what happens meanwhile, or several at once."""
        return Process(
            self.argv(*args, log=log), stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd, pass_fds=pass_fds
        )

    def call(
        self,
        *args: str,
        stdin: bytes | int = b"",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Result:
        """Run a command to the end of it and of its outputs, whatever code it ends with."""
        log = f"{self.scratch}/log-{next(_serial)}.json"
        started = self.start(*args, stdin=stdin, env=env, cwd=cwd, pass_fds=pass_fds, log=log)
        result = started.wait(timeout or self.timeout)
        return result._replace(log=read_log(log))

    def ok(self, *args: str, stdin: bytes | int = b"", timeout: float | None = None) -> Result:
        """Run a command that must succeed."""
        return self.call(*args, stdin=stdin, timeout=timeout).expect(0)

    def ids(self) -> list[str]:
        """The containers that `list --quiet` names."""
        return self.ok("list", "--quiet").text.split()

    def _wrapper(self) -> str:
        path = f"{self.scratch}/runvm"
        with open(self.config_file, "w", encoding="utf-8") as file:
            file.write(f"state_dir = {json.dumps(self.state_dir)}\n")
            if process.FACTOR != 1:
                file.write(f"boot_timeout_s = {BOOT_S * process.FACTOR:.0f}\n")
            # guest images and templates of this checkout alone, where several with different agents are tested at once
            if data_dir := os.environ.get("RUNVM_TEST_DATA_DIR"):
                file.write(f"data_dir = {json.dumps(data_dir)}\n")
            file.write(f"hypervisor = {json.dumps(HYPERVISOR)}\n")
            # what a host needs besides: more time, say, where it has much else to do
            file.write(os.environ.get("RUNVM_TEST_SETTINGS", ""))
        with open(path, "w", encoding="utf-8") as file:
            file.write(_WRAPPER.format(source=SOURCE, config=self.config_file))
        os.chmod(path, 0o755)
        return path


class Output(NamedTuple):
    """What a foreground run gave."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")


class Container:
    """One container of the runtime under test and its bundle. Force-deleted and reaped by `close`."""

    def __init__(self, runtime: Runtime, bundle: Bundle, cid: str) -> None:
        self.runtime = runtime
        self.bundle = bundle
        self.id = cid
        self.pid_file = f"{bundle.path}/init.pid"
        self.init_pid = 0
        self._log = ""
        self._serial = itertools.count(1)
        self._terminals: list[Terminal] = []

    # -- life

    def create(
        self, *flags: str, stdin: int | bytes = b"", stdout: int | None = None, stderr: int | None = None
    ) -> None:
        """`create`, which must succeed. Its streams become the container's: by default files that `stdout()` reads."""
        self.try_create(*flags, stdin=stdin, stdout=stdout, stderr=stderr).expect(0)
        self.init_pid = self.read_pid_file()

    def try_create(
        self,
        *flags: str,
        command: str = "create",
        stdin: int | bytes = b"",
        stdout: int | None = None,
        stderr: int | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Result:
        """`create` (or `run --detach`) and how it ended; what the container wrote is no part of that."""
        started = self.begin(
            *flags, command=command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, pass_fds=pass_fds
        )
        return self.created(started, timeout=timeout, stderr_is_ours=stderr is None)

    def begin(
        self,
        *flags: str,
        command: str = "create",
        stdin: int | bytes = b"",
        stdout: int | None = None,
        stderr: int | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Begin `create` or `run` and don't wait; `created` does."""
        self.bundle.save()
        self._log = f"{self.bundle.path}/create-{next(self._serial)}.json"
        with open(f"{self.bundle.path}/stdout", "ab") as out, open(f"{self.bundle.path}/stderr", "ab") as err:
            return self.runtime.start(
                *(command, "--bundle", self.bundle.path, "--pid-file", self.pid_file, *flags, self.id),
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                cwd=cwd,
                pass_fds=pass_fds,
                log=self._log,
            )

    def created(self, started: Process, *, timeout: float | None = None, stderr_is_ours: bool = True) -> Result:
        """Wait for what `begin` began."""
        result = started.wait(timeout or self.runtime.timeout)
        if os.path.exists(self.pid_file):
            self.init_pid = self.read_pid_file()
        return result._replace(stderr=self.stderr() if stderr_is_ours else b"", log=read_log(self._log))

    def start(self) -> None:
        """`start`, which must succeed."""
        self.runtime.ok("start", self.id)

    def launch(self, *flags: str, stdin: int | bytes = b"") -> Container:
        """`run --detach`."""
        self.try_create("--detach", *flags, command="run", stdin=stdin).expect(0)
        return self

    def run(self, *flags: str, stdin: bytes | int = b"", timeout: float | None = None) -> Result:
        """`run` in the foreground."""
        self.bundle.save()
        return self.runtime.call("run", "--bundle", self.bundle.path, *flags, self.id, stdin=stdin, timeout=timeout)

    def kill(self, number: int | str = signal.SIGTERM, *flags: str) -> None:
        """`kill`, which must succeed."""
        self.runtime.ok("kill", *flags, self.id, str(int(number)) if isinstance(number, int) else number)

    def delete(self, *flags: str) -> None:
        """`delete`, which must succeed."""
        self.runtime.ok("delete", *flags, self.id)

    def wait(self, timeout: float | None = None) -> int:
        """Reap the container's pid, as its engine does: the exit code."""
        return process.reap(self.init_pid, timeout or self.runtime.timeout)

    def close(self) -> None:
        """Take the container away, whatever state it is in, and collect its process."""
        for terminal in self._terminals:
            terminal.close()
        deleted = self.runtime.call("delete", "--force", self.id)
        process.reap_orphans()
        deleted.expect(0)

    # -- looking

    def state(self) -> dict[str, Any]:
        """What `state` prints."""
        state: dict[str, Any] = self.runtime.ok("state", self.id).json()
        return state

    @property
    def status(self) -> str:
        """The status in `state`."""
        return str(self.state()["status"])

    def wait_status(self, status: str, timeout: float = 15) -> None:
        """Until `state` says *status*."""
        wait_until(lambda: self.status == status, timeout=timeout, what=f"{self.id} is {status}", interval=0.1)

    def read_pid_file(self) -> int:
        """The number in --pid-file."""
        with open(self.pid_file, encoding="ascii") as file:
            return int(file.read())

    def stdout(self) -> bytes:
        """What the container has written to its standard output (where `create` chose the file)."""
        return _read(f"{self.bundle.path}/stdout")

    def stderr(self) -> bytes:
        """The same for standard error."""
        return _read(f"{self.bundle.path}/stderr")

    def wait_stdout(self, wanted: bytes, timeout: float = 20) -> bytes:
        """Until *wanted* is in its output."""
        wait_until(lambda: wanted in self.stdout(), timeout=timeout, what=f"{wanted!r} in {self.id}'s output")
        return self.stdout()

    # -- processes in it

    def exec(
        self, *argv: str, flags: Sequence[str] = (), stdin: bytes | int = b"", timeout: float | None = None
    ) -> Result:
        """`exec`, whatever code it ends with."""
        return self.runtime.call("exec", *flags, self.id, *argv, stdin=stdin, timeout=timeout)

    def sh(self, script: str, *flags: str, stdin: bytes = b"") -> str:
        """The output of a shell script run in it, which must succeed."""
        return self.exec("sh", "-c", script, flags=flags, stdin=stdin).expect(0).text

    def terminal(self, command: Callable[[str], object]) -> Terminal:
        """Call *command* with the path of a fresh console socket and give the terminal that comes over it."""
        path = f"{self.runtime.scratch}/console-{next(_serial)}"
        console = ConsoleSocket(path)
        try:
            command(path)
            terminal = console.receive()
        finally:
            console.close()
        self._terminals.append(terminal)
        return terminal


class Box:
    """Makes containers, each of a bundle of its own, and takes them all away in the end."""

    def __init__(self, runtime: Runtime, template: str, name: str) -> None:
        self.runtime = runtime
        self._template = template
        self._name = "".join(letter if letter.isalnum() else "-" for letter in name.removeprefix("test_"))[:40]
        self.containers: list[Container] = []

    def __call__(self, *argv: str, cid: str = "") -> Container:
        """A container that will run *argv* (not created yet)."""
        number = next(_serial)
        cid = cid or f"rvt{os.getpid()}-{number}-{self._name}"
        bundle = Bundle(f"{self.runtime.scratch}/b{number}", self._template, cid)
        if argv:
            bundle.args(*argv)
        container = Container(self.runtime, bundle, cid)
        self.containers.append(container)
        return container

    def sh(self, script: str) -> Container:
        """A container that will run a shell script."""
        return self("sh", "-c", script)

    def sleeper(self) -> Container:
        """A container that does nothing until SIGTERM, and is running."""
        return self.idle().launch()

    def idle(self) -> Container:
        """The same, not created yet. A shell as PID 1 ignores SIGTERM unless it traps it."""
        return self.sh("trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")

    def close(self) -> None:
        """Delete every container by force, and the bundles. Raises the last failure, having tried them all."""
        failure: BaseException | None = None
        for container in reversed(self.containers):
            try:
                container.close()
            except AssertionError as error:
                failure = error
        if failure is not None:
            self.containers.clear()
            raise failure
        for container in self.containers:
            shutil.rmtree(container.bundle.path, ignore_errors=True)
        self.containers.clear()


def facts(container: Container, commands: Mapping[str, str]) -> dict[str, str]:
    """What shell commands print in *container*, each under its name, out of one `run`: a VM started once."""
    script = "".join(f"printf '\n==%s\n' {name}; ( {command}\n) 2>&1\n" for name, command in commands.items())
    container.bundle.args("sh", "-c", script + "true\n")
    result = container.run().expect(0)
    found: dict[str, str] = {}
    name = ""
    for line in result.stdout.decode(errors="replace").splitlines():
        if line.startswith("=="):
            name = line[2:]
            found[name] = ""
        elif name:
            found[name] += line + "\n"
    return {key: value.rstrip("\n") for key, value in found.items()}


def read_log(path: str) -> tuple[dict[str, Any], ...]:
    """The records of a JSON log file; each line must be one."""
    try:
        with open(path, encoding="utf-8") as file:
            return tuple(json.loads(line) for line in file if line.strip())
    except FileNotFoundError:
        return ()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def report(message: str) -> None:
    """A line for whoever watches the tests run."""
    sys.stderr.write(f"tests: {message}\n")
