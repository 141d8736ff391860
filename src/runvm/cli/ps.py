"""`runvm ps`: a container's processes, as host pids or as the host's ps shows those."""

from __future__ import annotations

from runvm.cli.common import ID, checked_id, write, write_json
from runvm.cli.grammar import Command, Flag
from runvm.errors import DeadlineError, HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "ps",
    words=f"{ID} [ps option ...]",
    min_args=1,
    max_args=-1,
    hands_on=True,
    flags=(Flag("format", "what to print", "f", metavar="FORMAT", default="table", choices=("table", "json")),),
    description="List the host's processes that stand for the container's: one for its first process, and one for each "
    "'runvm exec' in it. The table is that of the host's ps, called with the ps options given after the id (-ef "
    "without any); json is an array of pids. What else runs in the virtual machine has no pid on the host: "
    "'runvm exec ID ps' shows it.",
    examples=(("", "runvm ps web1"), ("", "runvm ps web1 -o pid,etime,args"), ("", "runvm ps --format json web1")),
)


_PS_SECONDS = 20.0
"""ps waits for a process whose memory map is locked, as one has that hangs in a system call."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where ps is when the caller has no PATH, as podman's delete has none."""


def run(ctx: Context, args: Args) -> int:
    """Print what the verb finds."""
    from runvm.container.ps import pids

    cid, options = checked_id(args.words[0]), args.words[1:]
    found = pids(ctx, cid)
    if args.text("format") == "json":
        write_json(found)
    else:
        write(only(found, _host_ps(options or ["-ef"])))
    return 0


def only(pids: list[int], output: str) -> str:
    """The title of ps's *output* and its lines of *pids*, found by the PID column. Raises: UsageError without one."""
    lines = output.splitlines()
    title = lines[0].split() if lines else []
    if "PID" not in title:
        raise UsageError("couldn't find PID field in ps output", do="have the ps options show it, as -o pid,args does")
    column = title.index("PID")
    wanted = {str(pid) for pid in pids}
    kept = [line for line in lines[1:] if line.split()[column : column + 1] and line.split()[column] in wanted]
    return "".join(f"{line}\n" for line in [lines[0], *kept])


def _host_ps(options: list[str]) -> str:
    import os
    import subprocess

    environment = {"PATH": _PATH, **os.environ}
    try:
        done = subprocess.run(
            ["ps", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            check=False,
            timeout=_PS_SECONDS,
        )
    except FileNotFoundError as error:
        raise HostError("the host has no ps", do="install it ('apt install procps'), or use --format json") from error
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"timed out after {_PS_SECONDS:.0f} s waiting for the host's ps") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise UsageError(f"ps exited with {done.returncode}", details=said)
    return done.stdout.decode(errors="surrogateescape")
