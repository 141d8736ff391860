"""`runvm events`: a container's statistics and out-of-memory events, a line of JSON each."""

from __future__ import annotations

import gc

from runvm.cli.common import ID, container_id, write_json
from runvm.cli.grammar import Command, Flag
from runvm.errors import RunvmError, StateError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.container.context import Context

COMMAND = Command(
    "events",
    words=ID,
    min_args=1,
    max_args=1,
    flags=(
        Flag("interval", "how often statistics are shown", metavar="DURATION", default="5s"),
        Flag("stats", "show the statistics once, then exit"),
    ),
    description="Print the container's statistics every --interval (500ms, 5s, 1m30s), and a line each time that it "
    "runs out of memory, until it stops. Figures are those of the container's cgroup in its virtual machine; `vm` has "
    "what the machine takes of the host, and its overhead: what of that isn't its containers'.",
    examples=(("", "runvm events --stats web1 | jq .data.memory.usage"), ("", "runvm events --interval 1s web1")),
)

# Go's time.ParseDuration
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def run(ctx: Context, args: Args) -> int:
    """Print what the verb finds."""
    from runvm.container import state, stats

    cid = container_id(args)
    interval = parse_duration(args.text("interval"))
    if interval <= 0:
        raise UsageError("duration interval must be greater than 0")
    if state.load(ctx, cid).status == "stopped":
        raise StateError(f"container with id {cid} is not running")
    if args.on("stats"):
        write_json(event("stats", cid, stats.stats(ctx, cid)))
        return 0
    return _follow(ctx, cid, interval)


def event(kind: str, cid: str, data: dict[str, object] | None = None) -> dict[str, object]:
    """A line of `events`, as runc orders it."""
    line: dict[str, object] = {"type": kind, "id": cid}
    if data is not None:
        line["data"] = data
    return line


def parse_duration(text: str) -> float:
    """Seconds of '5s', '1m30s', '500ms', '1.5h'; a lone number is 0 only. Raises: UsageError."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    seconds, at = 0.0, 0
    while at < len(rest):
        end = at
        while end < len(rest) and rest[end] in "0123456789.":
            end += 1
        unit_end = end
        while unit_end < len(rest) and rest[unit_end] not in "0123456789.":
            unit_end += 1
        try:
            seconds += float(rest[at:end]) * _UNITS[rest[end:unit_end]]
        except (ValueError, KeyError):
            break
        at = unit_end
    if not rest or at < len(rest):
        raise UsageError(f'invalid value "{text}" for flag --interval', do="it takes a duration such as 5s or 500ms")
    return sign * seconds


def _follow(ctx: Context, cid: str, interval: float) -> int:
    """Both kinds of events until the container has stopped; the thread's wait for out-of-memory ones ends just then."""
    gc.enable()
    import threading

    from runvm.container import stats

    ended = threading.Event()
    failures: list[BaseException] = []

    def watch() -> None:
        try:
            stats.watch_oom(ctx, cid, lambda: write_json(event("oom", cid)))
        except Exception as error:  # handed to the main thread, which raises it
            failures.append(error)
        finally:
            ended.set()

    threading.Thread(target=watch, name="oom", daemon=True).start()
    while not ended.wait(interval):
        try:
            data = stats.stats(ctx, cid)
        except RunvmError:
            if not ended.wait(1):
                raise
            break  # it stopped between two looks
        write_json(event("stats", cid, data))
    if failures and not isinstance(failures[0], StateError):
        raise failures[0]
    return 0
