"""Block I/O and pressure of a container's cgroup in the guest (version 2), in the shape of runc's statistics."""

from __future__ import annotations

import re
from typing import Any

_TABLES = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}
"""A key of io.stat (kernel's cgroup-v2.rst), where runc shows it, and as what."""
_DEVICE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")
_NUMBER = re.compile(r"[0-9]{1,19}")  # engines read 64 bits
_SHARE = re.compile(r"[0-9]{1,3}\.[0-9]{1,2}")

CPUSET: dict[str, int] = dict.fromkeys(
    (
        "cpu_exclusive",
        "mem_hardwall",
        "mem_exclusive",
        "memory_migrate",
        "memory_spread_page",
        "memory_spread_slab",
        "memory_pressure",
        "sched_load_balance",
        "sched_relax_domain_level",
    ),
    0,
)
"""What only version 1 has: zeros for runc as well."""


def blkio(text: str) -> dict[str, list[dict[str, Any]]]:
    """Of the file io.stat; numbers that are 0 have no key, as in runc's JSON."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in text.splitlines():
        name, *pairs = line.split() or [""]
        device = _DEVICE.fullmatch(name)
        if device is None:
            continue
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key in _TABLES and _NUMBER.fullmatch(value):
                table, operation = _TABLES[key]
                entry = {"major": int(device[1]), "minor": int(device[2]), "op": operation, "value": int(value)}
                found.setdefault(table, []).append({key: value for key, value in entry.items() if value})
    return found


def pressure(files: dict[str, str], name: str) -> dict[str, Any]:
    """{"psi": …} of the file *name*.pressure (kernel's psi.rst), or nothing where the guest's kernel doesn't count."""
    found: dict[str, dict[str, float]] = {}
    for line in files.get(f"{name}.pressure", "").splitlines():
        kind, *pairs = line.split() or [""]
        values = dict(pair.partition("=")[::2] for pair in pairs)
        averages = {key: values.get(key, "") for key in ("avg10", "avg60", "avg300")}
        if kind in ("some", "full") and all(map(_SHARE.fullmatch, averages.values())):
            total = values.get("total", "")
            found[kind] = {key: float(value) for key, value in averages.items()}
            found[kind]["total"] = int(total) if _NUMBER.fullmatch(total) else 0
    if not found:
        return {}
    none = {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0}
    return {"psi": {"some": none, "full": none, **found}}
