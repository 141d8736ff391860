"""`debug`: what a container's virtual machine says for itself."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from runvm.container import state
from runvm.log import printable
from runvm.protocol import messages
from runvm.sandbox import registry

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.sandbox.registry import Sandbox

_LOGS = ("supervisor.log", "vmm.log", "virtiofsd.log")


def console(ctx: Context, cid: str) -> int:
    """Print the end of the guest's console. Raises NotRunningError."""
    found = registry.call(_sandbox(ctx, cid), messages.Status())
    sys.stdout.write(f"{found['console']}\n")
    return 0


def shell(ctx: Context, cid: str, command: list[str]) -> int:
    """Run *command* (nothing: a shell) in the guest, beside the agent; its exit code. Raises StateError, GuestError."""
    from runvm.container.exec import exec_process
    from runvm.container.options import ExecOptions

    process = {"args": command or ["sh"], "terminal": os.isatty(0)}
    return exec_process(ctx, cid, ExecOptions(process), outside=True)


def logs(ctx: Context, cid: str, *, follow: bool) -> int:
    """Print what the processes of the container's VM have logged; with *follow* until they end."""
    sandbox = _sandbox(ctx, cid)
    offsets = dict.fromkeys(_LOGS, 0)
    while True:
        for name in _LOGS:
            try:
                with open(f"{sandbox.directory}/{name}", "rb") as file:
                    file.seek(offsets[name])
                    data = file.read()
            except FileNotFoundError:
                continue
            offsets[name] += len(data)
            for line in printable(data.decode(errors="replace").replace("\r", "")).splitlines():
                sys.stdout.write(f"{name.removesuffix('.log')}: {line}\n")
        if not follow or not os.path.isdir(sandbox.directory):
            return 0
        sys.stdout.flush()
        time.sleep(0.3)


def _sandbox(ctx: Context, cid: str) -> Sandbox:
    return registry.locate(ctx.config.state_dir, state.load(ctx, cid).sandbox)
