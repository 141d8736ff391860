"""`runvm update`: change a running container's limits."""

from __future__ import annotations

from runvm.cli.common import ID, WITHOUT_EFFECT, container_id
from runvm.cli.globals import absolute
from runvm.cli.grammar import Command, Flag
from runvm.errors import SpecError, UnsupportedError, UsageError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.cli.grammar import Args
    from runvm.container.context import Context
    from runvm.oci.shapes import JsonObject

_NUMBER = "N"
_SIZE = "BYTES"

COMMAND = Command(
    "update",
    words=ID,
    min_args=1,
    max_args=1,
    flags=(
        Flag("resources", "the new limits as JSON, as in linux.resources; - is stdin; no other flag counts then",
             "r", metavar="FILE"),
        Flag("blkio-weight", "weight of block I/O, 10 to 1000", metavar=_NUMBER, number=True),
        Flag("cpu-burst", "CPU time beyond the quota that may be saved up, microseconds", metavar=_NUMBER),
        Flag("cpu-idle", "1: CPU time only where nobody else wants it (SCHED_IDLE); 0: as others", metavar=_NUMBER,
             choices=("0", "1")),
        Flag("cpu-period", "period of the CPU limit, microseconds", metavar=_NUMBER),
        Flag("cpu-quota", "CPU time in a period, microseconds; -1: no limit", metavar=_NUMBER),
        Flag("cpu-rt-period", f"{WITHOUT_EFFECT}: see --cpu-rt-runtime", metavar=_NUMBER),
        Flag("cpu-rt-runtime", "real-time CPU time: not supported, virtual CPUs are threads", metavar=_NUMBER),
        Flag("cpu-share", "weight of CPU time against other containers'", "cpu-shares", metavar=_NUMBER),
        Flag("cpuset-cpus", "CPUs it may use: 0-3,7", metavar="LIST"),
        Flag("cpuset-mems", "memory nodes it may use: 0-3,7", metavar="LIST"),
        Flag("memory", "memory limit, with k, m or g if you like; -1: no limit", metavar=_SIZE),
        Flag("memory-reservation", "soft memory limit", metavar=_SIZE),
        Flag("memory-swap", "limit of memory and swap together; -1: no limit", metavar=_SIZE),
        Flag("pids-limit", "how many processes it may have; -1: no limit", metavar=_NUMBER, number=True),
        Flag("kernel-memory", WITHOUT_EFFECT, metavar=_SIZE, hidden=True),
        Flag("kernel-memory-tcp", WITHOUT_EFFECT, metavar=_SIZE, hidden=True),
        Flag("l3-cache-schema", "Intel RDT's cache classes are the host's: not supported", metavar="SCHEMA"),
        Flag("mem-bw-schema", "Intel RDT's bandwidth classes are the host's: not supported", metavar="SCHEMA"),
    ),
    description="Change limits of a running container; those that aren't named stay. They hold in the virtual machine "
    "and around it, which gets more memory and CPUs if they ask for more than it has; it never gets less.",
    examples=(
        ("", "runvm update --memory 512m --pids-limit 100 web1"),
        ("", "echo '{\"cpu\": {\"quota\": 50000, \"period\": 100000}}' | runvm update --resources - web1"),
    ),
)  # fmt: skip

# Flags by the kind of their values: where they go in linux.resources
_UNSIGNED = {"cpu-burst": "burst", "cpu-period": "period", "cpu-rt-period": "realtimePeriod", "cpu-share": "shares"}
_SIGNED = {"cpu-idle": "idle", "cpu-quota": "quota", "cpu-rt-runtime": "realtimeRuntime"}
_LISTS = {"cpuset-cpus": "cpus", "cpuset-mems": "mems"}
_SIZES = {"memory": "limit", "memory-reservation": "reservation", "memory-swap": "swap"}
_MAX = 2**63 - 1


def run(ctx: Context, args: Args) -> int:
    """Call the verb."""
    from runvm.container.update import update

    cid = container_id(args)
    update(ctx, cid, resources(args))
    return 0


def resources(args: Args) -> JsonObject:
    """The OCI resources object that the flags or --resources ask for; only what is given is in it."""
    source = args.text("resources")
    if source:
        from runvm.oci.spec import load_resources

        return load_resources(_read(source))
    for flag in ("l3-cache-schema", "mem-bw-schema"):
        if args.text(flag):
            raise UnsupportedError(f"--{flag} is not supported by runvm: the host's classes have no effect in a guest")
    for flag in ("kernel-memory", "kernel-memory-tcp"):
        if args.text(flag):
            from runvm.log import log

            log.warning("kernel memory settings are ignored: Linux has dropped them")
    cpu: JsonObject = {
        **_collect(args, _UNSIGNED, _unsigned),
        **_collect(args, _SIGNED, _signed),
        **_collect(args, _LISTS, lambda _flag, text: text),
    }
    found: JsonObject = {"cpu": cpu, "memory": _collect(args, _SIZES, parse_size)}
    # As with runc, 0 leaves these two as they are
    if args.number("blkio-weight"):
        found["blockIO"] = {"weight": args.number("blkio-weight")}
    if args.number("pids-limit"):
        found["pids"] = {"limit": args.number("pids-limit")}
    found = {key: value for key, value in found.items() if value}
    from runvm.oci.spec import check_resources

    check_resources(found)
    return found


def parse_size(flag: str, text: str) -> int:
    """Bytes of '1048576', '100m', '1.5GiB'; -1 stands for no limit. Raises: UsageError with runc's message."""
    if text == "-1":
        return -1
    digits = text.rstrip("kKmMgGtTpPiIbB ")
    unit = text[len(digits) :].strip().lower()
    if unit.removesuffix("b").removesuffix("i") in ("", *"kmgtp") and unit not in ("i", "ib"):
        power = "kmgtp".find(unit[:1]) + 1 if unit not in ("", "b") else 0
        if digits.isascii() and digits.replace(".", "", 1).isdigit() and len(digits) < 24:
            whole = int(digits) if digits.isdigit() else float(digits)
            size = int(whole * 1024**power)
            if size <= _MAX:
                return size
    raise UsageError(f"invalid value for {flag}: invalid size: '{text}'")


def _collect(args: Args, flags: dict[str, str], read: Callable[[str, str], int | str]) -> JsonObject:
    return {key: read(flag, args.text(flag)) for flag, key in flags.items() if args.text(flag)}


def _unsigned(flag: str, text: str) -> int:
    number = _signed(flag, text)
    if number < 0:
        raise UsageError(f'invalid value for {flag}: "{text}"', do="it takes a number from 0")
    return number


def _signed(flag: str, text: str) -> int:
    if not text.removeprefix("-").isdigit() or not text.isascii() or len(text) > 20 or not -_MAX <= int(text) <= _MAX:
        raise UsageError(f'invalid value for {flag}: "{text}"', do="it takes a whole number")
    return int(text)


def _read(source: str) -> bytes:
    """The file or, for '-', standard input to its end; the verb's own check of the size needs one byte more."""
    import os

    from runvm.oci.spec import MAX_BYTES, read_bounded

    if source != "-":
        path = absolute(source)
        try:
            return read_bounded(path, pipe=True)
        except OSError as error:
            raise SpecError(f"{path}: {reason(error)}") from error
    data = b""
    while len(data) <= MAX_BYTES and (chunk := os.read(0, 1 << 16)):
        data += chunk
    return data
