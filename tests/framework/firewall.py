"""What engines do to the host's packet filter, undone: they leave chains and policies behind."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

from framework import process

if TYPE_CHECKING:
    from collections.abc import Sequence


class Firewall:
    """The rules of iptables and ip6tables, and IPv4 forwarding, at the time of making; `restore` brings them back."""

    def __init__(self) -> None:
        self._rules = {name: _run(f"{name}-save") for name in ("iptables", "ip6tables")}
        with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
            self._forward = file.read()

    def restore(self, marks: Sequence[str]) -> None:
        """Bring the rules back. Beside another engine only those go that bear one of *marks*."""
        shared = any(_program(pid) in ("dockerd", "conmon") for pid in process.all_pids())
        for name, rules in self._rules.items():
            if shared:
                self._remove(name, marks)
            else:
                self._replace(name, rules)
        if not shared:
            with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as file:
                file.write(self._forward)

    def _remove(self, name: str, marks: Sequence[str]) -> None:
        table = ""
        for line in _run(f"{name}-save").splitlines():
            table = line[1:] if line.startswith("*") else table
            if line.startswith("-A") and any(mark in line for mark in marks):
                _try(name, "-t", table, "-D", *shlex.split(line)[1:])

    def _replace(self, name: str, rules: str) -> None:
        for table in ("filter", "nat", "mangle", "raw"):
            if f"*{table}" not in rules:
                _try(name, "-t", table, "-F")
                _try(name, "-t", table, "-X")
        if "*filter" not in rules:
            _try(name, "-P", "FORWARD", "ACCEPT")
        if rules.strip():
            subprocess.run([f"{name}-restore"], input=rules, text=True, check=True, timeout=10)


def _program(pid: int) -> str:
    return process.command_line(pid).split(" ")[0].rsplit("/", 1)[-1] if process.alive(pid) else ""


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout


def _try(*argv: str) -> None:
    subprocess.run(argv, check=False, timeout=10, capture_output=True)
