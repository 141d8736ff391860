"""The shape of config.json as tables of rules; `oci.spec` walks them.

Source: OCI runtime spec 1.1, config.md, config-linux.md and its JSON schema. Fields that no table names are ignored, as
the spec demands. Rules on several fields at once are in `rules.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.oci.shapes import (
    ID,
    INT32,
    INT64,
    TEXTS,
    UINT16,
    UINT32,
    UINT64,
    Invalid,
    Json,
    absolute,
    any_text,
    array,
    boolean,
    choice,
    integer,
    mapping,
    nonempty,
    shown,
    table,
    text,
)

if TYPE_CHECKING:
    from runvm.oci.shapes import Rule

# --- process (config.md, Process)

RLIMITS = (
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
)
SCHEDULERS = ("SCHED_BATCH", "SCHED_DEADLINE", "SCHED_FIFO", "SCHED_IDLE", "SCHED_ISO", "SCHED_OTHER", "SCHED_RR")
SCHEDULER_FLAGS = (
    "SCHED_FLAG_RESET_ON_FORK",
    "SCHED_FLAG_RECLAIM",
    "SCHED_FLAG_DL_OVERRUN",
    "SCHED_FLAG_KEEP_POLICY",
    "SCHED_FLAG_KEEP_PARAMS",
    "SCHED_FLAG_UTIL_CLAMP_MIN",
    "SCHED_FLAG_UTIL_CLAMP_MAX",
)
# What capabilities(7) has up to Linux 6.1, in the order of their numbers
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
_MAX_CPU = 1023  # cpu_set_t has so many bits
_WEIGHT = integer(0, 1000)  # of block I/O: 0 is not set


def _cpus(value: Json) -> None:
    """A list of processors such as 0-3,7, as runc takes it: with spaces and empty parts, or with nothing in it."""
    text(value)
    parts = list(filter(None, map(str.strip, value.split(","))))
    if value and not parts:
        raise Invalid(f"names no CPU: {shown(value)}")
    for part in parts:
        numbers = part.split("-", 1)
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise Invalid(f"must be a list of CPUs such as 0-3,7, got {shown(part)}")
        if any(len(number) > 9 or int(number) > _MAX_CPU for number in numbers):
            raise Invalid(f"values larger than {_MAX_CPU} are not supported")
        if int(numbers[0]) > int(numbers[-1]):
            raise Invalid(f"invalid CPU range {shown(part)}")


CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")

PROCESS = table(
    {
        "terminal": boolean,
        "consoleSize": table({"height": UINT64, "width": UINT64}, required=("height", "width")),
        "user": table({"uid": ID, "gid": ID, "umask": UINT32, "additionalGids": array(ID), "username": text}),
        "args": array(text, at_least=1),
        "env": TEXTS,
        "cwd": absolute,
        "capabilities": table(dict.fromkeys(CAPABILITY_SETS, TEXTS)),
        "rlimits": array(
            table(
                {"type": choice(RLIMITS, "rlimit"), "soft": UINT64, "hard": UINT64}, required=("type", "soft", "hard")
            )
        ),
        "noNewPrivileges": boolean,
        "apparmorProfile": text,
        "selinuxLabel": text,
        "oomScoreAdj": integer(-1000, 1000),
        "scheduler": table(
            {
                "policy": choice(SCHEDULERS, "scheduling policy"),
                "nice": INT32,
                "priority": INT32,
                "flags": array(choice(SCHEDULER_FLAGS, "scheduling flag")),
                "runtime": UINT64,
                "deadline": UINT64,
                "period": UINT64,
            },
            required=("policy",),
        ),
        "ioPriority": table(
            {
                "class": choice(("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"), "I/O priority class"),
                "priority": integer(0, 7),
            },
            required=("class",),
        ),
        "execCPUAffinity": table({"initial": _cpus, "final": _cpus}),
    },
    required=("args", "cwd"),
)

# --- mounts, hooks, mappings

ID_MAPPINGS = array(
    table(
        {"containerID": UINT32, "hostID": UINT32, "size": integer(1, 2**32 - 1)},
        required=("containerID", "hostID", "size"),
    )
)

MOUNTS = array(
    table(
        {
            # Relative ones are taken from the root with a warning, as runc does it: see spec.py
            "destination": nonempty,
            "type": text,
            "source": text,
            "options": TEXTS,
            "uidMappings": ID_MAPPINGS,
            "gidMappings": ID_MAPPINGS,
        },
        required=("destination",),
    )
)

HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

HOOKS = table(
    dict.fromkeys(
        HOOK_KINDS,
        array(
            table({"path": absolute, "args": TEXTS, "env": TEXTS, "timeout": integer(1, 2**31 - 1)}, required=("path",))
        ),
    )
)

# --- linux.resources


def _device_access(value: Json) -> None:
    nonempty(value)
    if not set("rwm").intersection(value):  # runc overlooks what else there is
        raise Invalid(f"must be made of r, w and m, got {shown(value)}")


def _page_size(value: Json) -> None:
    text(value)
    number = value[:-2]
    if value[-2:] not in ("KB", "MB", "GB") or not (number.isascii() and number.isdigit()) or number[0] == "0":
        raise Invalid(f'must be a huge page size such as "2MB", got {shown(value)}')


def _block_device(**more: Rule) -> Rule:
    return array(table({"major": INT64, "minor": INT64, **more}, required=("major", "minor")))


RESOURCES = table(
    {
        "devices": array(
            table(
                {
                    "allow": boolean,
                    "type": choice(("", "a", "b", "c"), "cgroup device type"),
                    "major": INT64,
                    "minor": INT64,
                    "access": _device_access,
                },
                required=("allow", "access"),
            )
        ),
        "memory": table(
            {
                "limit": INT64,
                "reservation": INT64,
                "swap": INT64,
                "kernel": INT64,
                "kernelTCP": INT64,
                "swappiness": UINT64,
                "disableOOMKiller": boolean,
                "useHierarchy": boolean,
                "checkBeforeUpdate": boolean,
            }
        ),
        "cpu": table(
            {
                "shares": UINT64,
                "quota": INT64,
                "burst": UINT64,
                "period": UINT64,
                "realtimeRuntime": INT64,
                "realtimePeriod": UINT64,
                "cpus": text,
                "mems": text,
                "idle": INT64,
            }
        ),
        "pids": table({"limit": INT64}),
        "blockIO": table(
            {
                "weight": _WEIGHT,
                "leafWeight": UINT16,
                "weightDevice": _block_device(weight=_WEIGHT, leafWeight=UINT16),
                "throttleReadBpsDevice": _block_device(rate=UINT64),
                "throttleWriteBpsDevice": _block_device(rate=UINT64),
                "throttleReadIOPSDevice": _block_device(rate=UINT64),
                "throttleWriteIOPSDevice": _block_device(rate=UINT64),
            }
        ),
        "hugepageLimits": array(table({"pageSize": _page_size, "limit": UINT64}, required=("pageSize", "limit"))),
        "network": table(
            {
                "classID": UINT32,
                "priorities": array(table({"name": text, "priority": UINT32}, required=("name", "priority"))),
            }
        ),
        "rdma": mapping(table({"hcaHandles": UINT32, "hcaObjects": UINT32})),
        "unified": mapping(text),
    }
)

# --- linux.seccomp

SECCOMP_ACTIONS = (
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
)
SECCOMP_ARCHS = (
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
)
SECCOMP_FLAGS = (
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
)
SECCOMP_OPERATORS = (
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
)

_ACTION = choice(SECCOMP_ACTIONS, "seccomp action")

SECCOMP = table(
    {
        "defaultAction": _ACTION,
        "defaultErrnoRet": UINT32,
        "architectures": array(choice(SECCOMP_ARCHS, "seccomp architecture")),
        "flags": array(choice(SECCOMP_FLAGS, "seccomp flag")),
        "listenerPath": text,
        "listenerMetadata": text,
        "syscalls": array(
            table(
                {
                    "names": TEXTS,
                    "action": _ACTION,
                    "errnoRet": UINT32,
                    "args": array(
                        table(
                            {
                                "index": integer(0, 5),  # a system call has six arguments
                                "value": UINT64,
                                "valueTwo": UINT64,
                                "op": choice(SECCOMP_OPERATORS, "seccomp operator"),
                            },
                            required=("index", "value", "op"),
                        )
                    ),
                },
                required=("names", "action"),
            )
        ),
    },
    required=("defaultAction",),
)

# --- linux, and the whole

NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
PROPAGATIONS = (
    "",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
)

_TIME_OFFSET = table({"secs": INT64, "nanosecs": integer(0, 999_999_999)})

LINUX = table(
    {
        "namespaces": array(
            table({"type": choice(NAMESPACES, "namespace"), "path": text}, required=("type",)),
        ),
        "uidMappings": ID_MAPPINGS,
        "gidMappings": ID_MAPPINGS,
        "devices": array(
            table(
                {
                    "path": nonempty,
                    "type": choice(("b", "c", "p", "u"), "device type"),
                    "major": INT64,
                    "minor": INT64,
                    "fileMode": UINT32,
                    "uid": ID,
                    "gid": ID,
                },
                required=("path", "type"),
            )
        ),
        "cgroupsPath": text,
        "resources": RESOURCES,
        "rootfsPropagation": choice(PROPAGATIONS, "propagation"),
        "seccomp": SECCOMP,
        "sysctl": mapping(text),
        "maskedPaths": TEXTS,
        "readonlyPaths": TEXTS,
        "mountLabel": text,
        "intelRdt": table(
            {"closID": text, "l3CacheSchema": text, "memBwSchema": text, "enableCMT": boolean, "enableMBM": boolean}
        ),
        "personality": table(
            {"domain": choice(("LINUX", "LINUX32"), "execution domain"), "flags": TEXTS}, required=("domain",)
        ),
        "timeOffsets": table({"monotonic": _TIME_OFFSET, "boottime": _TIME_OFFSET}),
    }
)

CONFIG = table(
    {
        "ociVersion": text,
        "process": PROCESS,
        "root": table({"path": nonempty, "readonly": boolean}, required=("path",)),
        "hostname": text,
        "domainname": text,
        "mounts": MOUNTS,
        "hooks": HOOKS,
        "annotations": mapping(any_text, key=any_text),
        "linux": LINUX,
    },
    required=("ociVersion", "process", "root"),
)
