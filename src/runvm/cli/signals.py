"""Signal names, as `runvm kill` takes them: the standard library's module costs 7 ms to import."""

from __future__ import annotations

from runvm.errors import UsageError

# Linux's numbers on every architecture but alpha, mips, parisc and sparc (signal(7)), which have no guest image
NUMBERS = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8,
    "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16,
    "CHLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24,
    "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
    "IOT": 6, "CLD": 17, "POLL": 29,
}  # fmt: skip

# What glibc leaves to programs; docker and podman, too, count from these
_RT_MIN = 34
_RT_MAX = 64


def parse_signal(text: str) -> int:
    """The number of '9', 'KILL', 'sigkill', 'RTMIN+3' or 'SIGRTMAX-1'; SIGTERM's for ''. 0 asks whether it lives.

    Raises: UsageError with runc's message.
    """
    if not text:
        return NUMBERS["TERM"]
    if text.isascii() and text.isdigit() and len(text) < 4 and int(text) <= _RT_MAX:
        return int(text)
    name = text.upper().removeprefix("SIG")
    if name in NUMBERS:
        return NUMBERS[name]
    for start, base, sign in (("RTMIN", _RT_MIN, "+"), ("RTMAX", _RT_MAX, "-")):
        if name == start:
            return base
        offset = name.removeprefix(start + sign)
        if offset != name and offset.isascii() and offset.isdigit() and len(offset) < 3:
            number = base + int(sign + offset)
            if _RT_MIN <= number <= _RT_MAX:
                return number
    raise UsageError(f'unknown signal "{text}"')
