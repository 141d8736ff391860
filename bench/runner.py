"""What every family of figures uses: a scratch directory, runtimes, bundles, timing side by side, tidying up."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from bench.floor import Floor
from bench.results import Breakdown, Curve, Figure, median
from framework import process, rootfs
from framework.bundle import CGROUP_PARENT, Bundle
from framework.docker import Dockerd
from framework.host import remove_cgroups
from framework.runtime import Runtime
from runvm import config as settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LAUNCHER = """#!/usr/bin/python3 -SI
import os, sys
sys.path.insert(0, {library!r})
os.environ.setdefault("RUNVM_CONFIG", {config!r})
from runvm.__main__ import entry
sys.exit(entry())
"""
SECONDS = 120.0
"""The most that one command may take."""


class Skip(Exception):
    """Something can't be measured here; the text says why."""


class Command(NamedTuple):
    """A runtime's name and the beginning of its command line."""

    name: str
    argv: list[str]


class Bench:
    """One run. Use as a context manager: what it made goes at the end."""

    def __init__(self, scratch: str, library: str, *, quick: bool) -> None:
        self.scratch = scratch
        self.quick = quick
        self.figures: list[Figure] = []
        self.breakdowns: list[Breakdown] = []
        self.curves: list[Curve] = []
        self.skipped: dict[str, str] = {}
        self._begun = time.monotonic()
        self._undo = ExitStack()
        self._floor: Floor | None = None
        self._docker: Dockerd | None = None
        self._serial = 0
        self.state_dir = f"{scratch}/state"
        self.config_file = f"{scratch}/config.toml"
        own = settings.load()
        with open(self.config_file, "w", encoding="utf-8") as file:
            file.write(f"state_dir = {json.dumps(self.state_dir)}\ndata_dir = {json.dumps(own.data_dir)}\n")
            # what the floor is made of; the family `work` compares it with another
            file.write('hypervisor = "qemu"\n')
        os.environ["RUNVM_CONFIG"] = self.config_file
        self.config = settings.load()
        launcher = f"{scratch}/runvm"
        with open(launcher, "w", encoding="utf-8") as file:
            file.write(_LAUNCHER.format(library=library, config=self.config_file))
        os.chmod(launcher, 0o755)
        self.runtime = Runtime(launcher, scratch)
        self.runvm = Command("runvm", [launcher, "--root", f"{scratch}/root"])
        self.template = f"{scratch}/rootfs"
        rootfs.make(self.template)
        rootfs.install_perl(self.template)
        for program in ("load.pl", "net.pl"):
            shutil.copy(f"{os.path.dirname(__file__)}/{program}", f"{self.template}/{program}")

    def __enter__(self) -> Bench:
        process.become_subreaper()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        _end_leftovers(self.scratch)
        process.reap_orphans()
        remove_cgroups()

    # --- words

    def say(self, text: str) -> None:
        """A line of progress."""
        sys.stderr.write(f"[{time.monotonic() - self._begun:6.1f} s] {text}\n")
        sys.stderr.flush()

    def add(self, figure: Figure) -> None:
        """Keep a figure, and say it."""
        self.figures.append(figure)
        medians = ", ".join(
            f"{label} {median(values):.{0 if median(values) >= 100 else 1}f} {figure.sample_unit}"
            for label, values in figure.samples.items()
            if values
        )
        target = "" if figure.at_most is None else f" (at most {figure.at_most:g})"
        self.say(f"{figure.family}: {figure.name}: {figure.value:.2f} {figure.unit}{target}; {medians}")

    def skip(self, what: str, why: str) -> None:
        """Note and say what isn't measured."""
        self.skipped[what] = why
        self.say(f"skipped: {what}: {why}")

    # --- parts

    @property
    def has_floor(self) -> bool:
        """Whether anything was compared with the floor."""
        return self._floor is not None

    @property
    def floor(self) -> Floor:
        """The floor, its template made at the first use."""
        if self._floor is None:
            self.say("booting the floor's guest")
            self._floor = Floor(self.config, f"{self.scratch}/floor")
            self._undo.callback(self._floor.close)
        return self._floor

    @property
    def docker(self) -> Dockerd:
        """A dockerd of our own, started at the first use. Raises Skip where there is none."""
        if self._docker is None:
            missing = next((n for n in ("dockerd", "containerd", "iptables") if shutil.which(n) is None), "")
            if missing:
                raise Skip(f"{missing} isn't installed")
            self.say("starting a dockerd")
            os.makedirs(f"{self.scratch}/docker")
            others = {"runsc": {"path": path}} if (path := shutil.which("runsc")) else {}
            docker = Dockerd(f"{self.scratch}/docker", self.runtime, self.template, others=others)
            self._undo.callback(docker.close)
            docker.open()
            self._docker = docker
        return self._docker

    def others(self) -> list[Command]:
        """runc, crun and gVisor, those that are installed and run a container; the rest is skipped."""
        found = []
        gvisor = ["--network=none", "--ignore-cgroups", "--platform=ptrace"]
        for name, flags in (("runc", []), ("crun", []), ("runsc", gvisor)):
            path = shutil.which(name)
            if path is None:
                self.skip(name, "isn't installed")
                continue
            command = Command(name, [path, "--root", f"{self.scratch}/root-{name}", *flags])
            try:
                self.run_container(command, self.bundle("true"))
            except Skip as error:
                self.skip(name, str(error))
            else:
                found.append(command)
        return found

    def bundle(self, *args: str) -> Bundle:
        """A bundle of busybox and perl whose process is *args*."""
        self._serial += 1
        name = f"bench{self._serial}"
        made = Bundle(f"{self.scratch}/b{self._serial}", self.template, name).args(*args)
        made.save()
        return made

    def cid(self, bundle: Bundle) -> str:
        """The container's name for a bundle."""
        return f"bench{os.getpid()}-{os.path.basename(bundle.path)}"

    # --- runs

    def call(self, argv: list[str], *, env: dict[str, str] | None = None) -> float:
        """Run a command that must succeed: the milliseconds it took. Raises Skip with its words."""
        # no pipe: a detached container would hold it open
        with open(f"{self.scratch}/stderr", "w+b") as stderr:
            environment = os.environ | env if env else None
            begun = time.perf_counter()
            with subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=environment
            ) as running:
                code = _code(running)
            taken = (time.perf_counter() - begun) * 1000
            stderr.seek(0)
            words = stderr.read().decode(errors="replace").strip()[-400:]
        if code != 0:
            raise Skip(f"'{' '.join(argv[-6:])}' ended with {code}: {words}")
        return taken

    def run_container(self, command: Command, bundle: Bundle, *, env: dict[str, str] | None = None) -> float:
        """`run` of a bundle to its end, in milliseconds."""
        return self.call([*command.argv, "run", "--bundle", bundle.path, self.cid(bundle)], env=env)

    def launch(self, command: Command, bundle: Bundle) -> str:
        """`run --detach`: the container's id; it is deleted at the end of the run, at the latest."""
        cid = self.cid(bundle)
        self._undo.callback(self.delete, command, cid)
        self.call([*command.argv, "run", "--detach", "--bundle", bundle.path, cid])
        return cid

    def delete(self, command: Command, cid: str) -> None:
        """`delete --force`, and collect the container's process."""
        subprocess.run([*command.argv, "delete", "--force", cid], capture_output=True, timeout=SECONDS, check=False)
        process.reap_orphans()

    def rounds(self, count: int) -> int:
        """How often to measure: fewer with --quick."""
        return max(2, count // 4) if self.quick else count

    def side_by_side(self, measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
        """Measure all, one after the other, *rounds* times (A B C A B C …), after a first time that doesn't count."""
        samples: dict[str, list[float]] = {label: [] for label in measures}
        for number in range(self.rounds(rounds) + 1):
            for label, measure in measures.items():
                taken = measure()
                if number:
                    samples[label].append(taken)
        return samples


def milliseconds(action: Callable[[], object]) -> float:
    """How long *action* takes."""
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1000


__all__ = ["CGROUP_PARENT", "Bench", "Command", "Skip", "milliseconds"]


def _code(running: subprocess.Popen[bytes]) -> int:
    """How it ends, noticed at once: Popen.wait with a timeout only looks every 50 ms. Raises TimeoutExpired."""
    pidfd = os.pidfd_open(running.pid)
    try:
        if not select.select([pidfd], [], [], SECONDS)[0]:
            running.kill()
            raise subprocess.TimeoutExpired(running.args, SECONDS)
    finally:
        os.close(pidfd)
    return running.wait()


def _end_leftovers(scratch: str) -> None:
    """Kill what still runs with files of *scratch*: gVisor's sandbox, where an engine couldn't start a container in it,
    is left to whoever finds it."""
    for pid in process.all_pids():
        if pid != os.getpid() and f"{scratch}/" in process.command_line(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
