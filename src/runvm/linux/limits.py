"""Resource limits of this process (getrlimit(2)), read off /proc: the standard library's module takes 2 ms to load."""

from __future__ import annotations

INFINITY = 2**64 - 1
"""RLIM_INFINITY, as config.json has it."""
# The names of /proc/self/limits (proc(5)) that stand in a config.json
_NAMES = {
    "Max cpu time": "RLIMIT_CPU",
    "Max file size": "RLIMIT_FSIZE",
    "Max data size": "RLIMIT_DATA",
    "Max stack size": "RLIMIT_STACK",
    "Max core file size": "RLIMIT_CORE",
    "Max resident set": "RLIMIT_RSS",
    "Max processes": "RLIMIT_NPROC",
    "Max open files": "RLIMIT_NOFILE",
    "Max locked memory": "RLIMIT_MEMLOCK",
    "Max address space": "RLIMIT_AS",
    "Max file locks": "RLIMIT_LOCKS",
    "Max pending signals": "RLIMIT_SIGPENDING",
    "Max msgqueue size": "RLIMIT_MSGQUEUE",
    "Max nice priority": "RLIMIT_NICE",
    "Max realtime priority": "RLIMIT_RTPRIO",
    "Max realtime timeout": "RLIMIT_RTTIME",
}
_SOFT = 26
_HARD = 47
"""Where the columns begin."""


def own() -> dict[str, tuple[int, int]]:
    """Soft and hard limit of each kind."""
    found = {}
    with open("/proc/self/limits") as file:
        for line in file:
            name = _NAMES.get(line[:_SOFT].rstrip())
            if name is not None:
                soft, hard = line[_SOFT:_HARD].strip(), line[_HARD:].split()[0]
                found[name] = (_number(soft), _number(hard))
    return found


def _number(text: str) -> int:
    return INFINITY if text == "unlimited" else int(text)
