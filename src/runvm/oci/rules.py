"""The rules of config.json that span fields or need the host, as runc 1.1 and crun 1.8 have them; for `oci.spec`.

Each takes objects whose fields `schema.py` has checked already, and raises schema.Invalid with the path of the field.
"""

from __future__ import annotations

import os

from runvm.oci.schema import CAPABILITIES, CAPABILITY_SETS
from runvm.oci.shapes import Invalid, JsonObject, shown


def check_version(version: str) -> None:
    """1.x.y, with SemVer's -pre and +build; 1.x too, which hand-written files have. runc 1.1 looks at none of it."""
    numbers = version.partition("+")[0].partition("-")[0].split(".")
    if not (len(numbers) in (2, 3) and all(number.isascii() and number.isdigit() for number in numbers)):
        raise Invalid(f'must be a version such as "1.1.0", got {shown(version)}', ".ociVersion")
    if int(numbers[0][:9]) != 1:
        raise Invalid(f"version {shown(version)} is not supported, only 1.x is", ".ociVersion")


def check_process(process: JsonObject, at: str = "") -> None:
    """The environment as runc takes it (init would fail on others later), each rlimit once and soft below hard."""
    for index, pair in enumerate(process.get("env", ())):
        name, equals, _ = pair.partition("=")
        if not equals:
            raise Invalid(f"invalid environment variable: {shown(pair)} has no '='", f"{at}.env[{index}]")
        if not name:
            raise Invalid(f"environment variable name can't be empty: {shown(pair)}", f"{at}.env[{index}]")
    seen = set()
    for index, limit in enumerate(process.get("rlimits", ())):
        if limit["type"] in seen:
            raise Invalid(f"{limit['type']} is set twice", f"{at}.rlimits[{index}].type")
        seen.add(limit["type"])
        if limit["soft"] > limit["hard"]:
            raise Invalid(f"{limit['soft']} is above the hard limit {limit['hard']}", f"{at}.rlimits[{index}].soft")


def namespaces_of(linux: JsonObject) -> dict[str, str]:
    """Type → path to join, '' for a new one; each type once (config-linux.md: "MUST generate an error")."""
    namespaces: dict[str, str] = {}
    for index, entry in enumerate(linux.get("namespaces", ())):
        kind, path = entry["type"], entry.get("path", "")
        if kind in namespaces:
            raise Invalid(f"duplicated namespace {shown(kind)}", f".linux.namespaces[{index}].type")
        if path and not path.startswith("/"):
            raise Invalid(f"must be an absolute path, got {shown(path)}", f".linux.namespaces[{index}].path")
        namespaces[kind] = path
    return namespaces


def check_namespaced(raw: JsonObject, namespaces: dict[str, str]) -> None:
    """What only a namespace of the container's own can hold: names, hidden paths, clocks."""
    for field in ("hostname", "domainname"):
        name = raw.get(field, "")
        if name and "uts" not in namespaces:
            raise Invalid(f"unable to set {field} without a private UTS namespace", f".{field}")
        if len(name.encode()) > 64:  # __NEW_UTS_LEN
            raise Invalid("longer than the 64 bytes that a kernel keeps", f".{field}")
    linux = raw.get("linux", {})
    for field in ("maskedPaths", "readonlyPaths"):
        if linux.get(field) and "mount" not in namespaces:
            raise Invalid("unable to restrict sys entries without a private mount namespace", f".linux.{field}")
    if linux.get("timeOffsets") and "time" not in namespaces:
        raise Invalid("needs a time namespace in linux.namespaces", ".linux.timeOffsets")


_MAX_MAPPINGS = 340  # user_namespaces(7)


def check_mappings(linux: JsonObject, namespaces: dict[str, str]) -> None:
    """The mappings of a new user namespace as the kernel takes them. Without one they mean nothing, as in runc; where
    none is given, the guest's runtime maps root alone, as crun does."""
    if namespaces.get("user") != "" or not (linux.get("uidMappings") or linux.get("gidMappings")):
        return
    for field in ("uidMappings", "gidMappings"):
        mappings = linux.get(field, ())
        if not mappings:
            raise Invalid("user namespaces enabled, but no mappings found", f".linux.{field}")
        if len(mappings) > _MAX_MAPPINGS:
            raise Invalid(f"more than the {_MAX_MAPPINGS} that a kernel takes", f".linux.{field}")
        for index, one in enumerate(mappings):
            for side in ("containerID", "hostID"):
                at = f".linux.{field}[{index}].{side}"
                if one[side] + one["size"] > 2**32:
                    raise Invalid("ends beyond the largest id there is", at)
                if any(_overlap(one[side], one["size"], other[side], other["size"]) for other in mappings[:index]):
                    raise Invalid("overlaps with an earlier mapping", at)
        if not any(one["containerID"] == 0 for one in mappings):
            raise Invalid("user namespaces enabled, but id 0 of the container isn't mapped", f".linux.{field}")


def _overlap(first: int, first_size: int, second: int, second_size: int) -> bool:
    return first < second + second_size and second < first + first_size


def check_devices(linux: JsonObject) -> None:
    """Every device but a FIFO has numbers."""
    for index, device in enumerate(linux.get("devices", ())):
        for number in ("major", "minor"):
            if number not in device and device["type"] != "p":
                raise Invalid("must be set", f".linux.devices[{index}].{number}")


_MIN_CPU_US, _MAX_PERIOD_US, _MAX_CPU_US = 1000, 1_000_000, 2**44 - 1
"""What a kernel takes of CPU time and its period (kernel's sched-bwc.rst, sched/core.c)."""


def check_cpu(cpu: JsonObject, at: str) -> None:
    """Quota, period and burst as the kernel takes them, which is asked late: at `start`, and says next to nothing. No
    quota is one below 1, no period is 0."""
    quota, period, burst = cpu.get("quota", 0), cpu.get("period", 0), cpu.get("burst", 0)
    for name, value, most in (("quota", quota, _MAX_CPU_US), ("period", period, _MAX_PERIOD_US)):
        if value > 0 and not _MIN_CPU_US <= value <= most:
            raise Invalid(f"must be from {_MIN_CPU_US} to {most} microseconds, got {value}", f"{at}.{name}")
    if burst > (quota if quota > 0 else _MAX_CPU_US):
        raise Invalid(f"{burst} is above the quota", f"{at}.burst")


def check_seccomp(seccomp: JsonObject) -> None:
    """An errno goes with ERRNO and TRACE alone (config-linux.md: "MUST print an error and fail"); runc ignores it."""
    fields = [("defaultErrnoRet", seccomp.get("defaultAction"), seccomp)]
    fields += [(f"syscalls[{i}].errnoRet", call["action"], call) for i, call in enumerate(seccomp.get("syscalls", ()))]
    for field, action, holder in fields:
        if field.rpartition(".")[2] in holder and action not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
            raise Invalid(f"{action} takes no errno", f".linux.seccomp.{field}")


_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def check_sysctl(sysctl: dict[str, str], namespaces: dict[str, str]) -> None:
    """Only what a namespace of the container's own holds (runc's validator.go, whose messages these are)."""
    for key in sysctl:
        name = _dotted(key)
        at = f".linux.sysctl[{shown(key)}]"
        if name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
            if "ipc" not in namespaces:
                raise Invalid(f'sysctl "{name}" is not allowed in the hosts ipc namespace', at)
        elif name.startswith("net."):
            if _is_host_network(namespaces):
                raise Invalid(f'sysctl "{name}" not allowed in host network namespace', at)
        elif name == "kernel.hostname" and "uts" in namespaces:
            raise Invalid(f'sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field', at)
        elif name != "kernel.domainname" or "uts" not in namespaces:
            raise Invalid(f'sysctl "{name}" is not in a separate kernel namespace', at)


def _dotted(key: str) -> str:
    """net/ipv4/conf/eth0.100/x means net.ipv4.conf.eth0/100.x (sysctl.d(5)): the first separator decides."""
    separator = next((char for char in key if char in "./"), ".")
    return key if separator == "." else key.translate({ord("."): "/", ord("/"): "."})


def _is_host_network(namespaces: dict[str, str]) -> bool:
    path = namespaces.get("network")
    if not path:
        return path is None
    try:
        return os.path.samefile(path, "/proc/self/ns/net")
    except OSError:
        return False  # joining it will say what is wrong with it


def capability_warnings(process: JsonObject) -> list[str]:
    """Unknown capabilities are warned of, never an error (config.md, Linux Process)."""
    sets = process.get("capabilities", {})
    wanted = {name for kind in CAPABILITY_SETS for name in sets.get(kind, ())}
    unknown = sorted(wanted.difference(CAPABILITIES))
    return [f"ignoring unknown or unavailable capabilities: {' '.join(map(shown, unknown[:10]))}"] if unknown else []
