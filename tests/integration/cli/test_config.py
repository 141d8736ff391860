"""config.json: what the process finds itself with. Settings are gathered in few containers, since each one is a VM."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from framework.runtime import HYPERVISOR, facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from framework.bundle import Bundle
    from framework.runtime import Box, Runtime


# Of the host's kernel, not of a namespace (as kernel.pid_max is since Linux 6.14)
SETTINGS: tuple[str, ...] = (
    *("fs/aio-max-nr", "fs/file-max", "fs/inotify/max_user_instances", "fs/inotify/max_user_watches", "fs/nr_open"),
    *("kernel/threads-max", "vm/max_map_count", "vm/swappiness", "fs/epoll/max_user_watches", "fs/protected_symlinks"),
    *("user/max_user_namespaces", "user/max_net_namespaces"),
)
if HYPERVISOR != "uml":  # which counts no events of a processor, has no huge pages, and is an older kernel
    SETTINGS += ("kernel/perf_event_paranoid", "../../sys/kernel/mm/transparent_hugepage/enabled")
    SETTINGS += ("kernel/io_uring_disabled",)


def capability_set(*names: str) -> dict[str, list[str]]:
    """The five sets: all hold *names*."""
    return {kind: list(names) for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")}


@pytest.fixture(scope="module")
def root(module_box: Box) -> dict[str, str]:
    """What a process of root's sees in a container with many settings."""
    container = module_box()
    bundle = container.bundle
    bundle.config["hostname"] = "some-host"
    bundle.config["annotations"] = {"org.example": "x"}
    process = bundle.process
    process["cwd"] = "/var/created/by/runtime"
    process["env"] += ["PLAIN=1", "SPACES=two words", "EMPTY=", "QUOTED=\"'$(x)", "UNI=zażółć", "LINES=a\nb"]
    process["user"] = {"uid": 0, "gid": 0, "umask": 0o27, "additionalGids": [10, 2000]}
    process["noNewPrivileges"] = True
    process["oomScoreAdj"] = 321
    process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 4 << 20, "hard": 4 << 20},
    ]
    bundle.linux["sysctl"] = {
        "net.ipv4.ip_unprivileged_port_start": "42",
        "net.ipv4.ping_group_range": "0 2147483647",
        "kernel.msgmax": "12345",
        "fs.mqueue.msg_max": "7",
    }
    bundle.file("/etc/secret", "secret")
    bundle.file("/etc/secret.d/file", "secret")
    bundle.file("/etc/fixed.d/file", "fixed")
    bundle.linux["maskedPaths"] += ["/etc/secret", "/etc/secret.d", "/does/not/exist"]
    bundle.linux["readonlyPaths"] += ["/etc/fixed.d", "/does/not/exist/either"]
    bundle.linux["devices"] = [
        {"path": "/dev/made", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/dev/deep/down/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0},
    ]
    bundle.resources["devices"] += [{"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"}]
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {
                "names": ["setpriority"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 2, "value": 13, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    return facts(
        container,
        {
            "cwd": "pwd",
            "env": 'printf "%s|" "$PLAIN" "$SPACES" "$EMPTY" "$QUOTED" "$UNI" "$LINES" "$HOME"',
            "id": "id -u; id -g; id -G",
            "umask": "umask",
            "status": "cat /proc/self/status",
            "limits": "cat /proc/self/limits",
            "settings": "cd /proc/sys; cat " + " ".join(SETTINGS),
            "oom": "cat /proc/self/oom_score_adj",
            "hostname": "hostname; cat /proc/sys/kernel/hostname",
            "sysctl": "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"
            " /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max",
            "masked": "wc -c </etc/secret; ls /etc/secret.d | wc -l;"
            " cat /proc/timer_list | wc -c; touch /etc/secret.d/x",
            "readonly": "cat /etc/fixed.d/file; echo; touch /etc/fixed.d/x",
            "procsys": "echo 1 >/proc/sys/kernel/msgmax",
            "made": "stat -c '%F %a %u %g %t %T' /dev/made /dev/deep/down/null; head -c 4 /dev/made | xxd -p",
            "devices": "stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty;"
            " for name in fd stdin stdout stderr ptmx; do readlink /dev/$name; done",
            "forbidden": "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem",
            "seccomp": "mkdir /tmp/x; ln -s a /tmp/y; renice -n 13 -p $$; renice -n 12 -p $$ && echo twelve",
            "mounts": "cat /proc/self/mountinfo",
            "pid": "echo $PPID; ls /proc | grep -c '^[0-9]'",
            "loopback": "ip -o link; ping -c 1 -W 2 127.0.0.1 >/dev/null && echo v4; ping6 -c 1 ::1 >/dev/null"
            " && echo v6",
        },
    )


def test_the_working_directory_is_made_where_it_is_missing(root: dict[str, str]) -> None:
    """process.cwd names a directory that isn't there: it is created."""
    assert root["cwd"] == "/var/created/by/runtime"


def test_the_environment_is_passed_as_it_is(root: dict[str, str]) -> None:
    """process.env: quotes, spaces, newlines, UTF-8 and empty values unchanged; HOME is added from passwd."""
    assert root["env"] == "1|two words||\"'$(x)|zażółć|a\nb|/root|"


def test_ids_groups_and_umask_are_set(root: dict[str, str]) -> None:
    """process.user: uid, gid, additionalGids and umask."""
    assert root["id"].splitlines() == ["0", "0", "0 10 2000"]
    assert root["umask"] == "0027"


def test_capabilities_are_those_of_the_config(root: dict[str, str]) -> None:
    """Docker's fourteen in bounding, effective and permitted, none inheritable or ambient; no new privileges."""
    status = dict(line.split(":", 1) for line in root["status"].splitlines() if ":" in line)
    docker_set = 0xA80425FB
    assert int(status["CapBnd"], 16) == docker_set
    assert int(status["CapEff"], 16) == docker_set
    assert int(status["CapPrm"], 16) == docker_set
    assert int(status["CapInh"], 16) == 0
    assert int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"


def test_resource_limits_are_set(root: dict[str, str]) -> None:
    """process.rlimits and process.oomScoreAdj."""
    limits = {line[:26].strip(): line[26:].split()[:2] for line in root["limits"].splitlines()[1:]}
    assert limits["Max open files"] == ["100", "200"]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max stack size"] == [str(4 << 20)] * 2
    assert root["oom"] == "321"


def test_limits_that_are_not_set_are_the_callers(root: dict[str, str]) -> None:
    """What config.json doesn't name is inherited: an engine's service often has many open files and processes."""
    set_here = ("Max open files", "Max core file size", "Max stack size")

    def of(text: str) -> dict[str, list[str]]:
        lines = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()[1:]}
        return {name: limits for name, limits in lines.items() if name not in set_here}

    with open("/proc/self/limits", encoding="ascii") as file:
        assert of(root["limits"]) == of(file.read())


def test_settings_of_the_hosts_kernel_hold(root: dict[str, str]) -> None:
    """Those for all containers of a host, which programs check as they start."""
    with ExitStack() as files:
        host = [files.enter_context(open(f"/proc/sys/{name}", encoding="ascii")).read() for name in SETTINGS]
    assert root["settings"].splitlines() == "".join(host).splitlines()


def test_the_hostname_is_set(root: dict[str, str]) -> None:
    """`hostname` in the container's own UTS namespace."""
    assert root["hostname"].splitlines() == ["some-host", "some-host"]


def test_sysctls_are_set(root: dict[str, str]) -> None:
    """linux.sysctl: of the network, IPC and mqueue namespaces."""
    assert [line.split() for line in root["sysctl"].splitlines()] == [["42"], ["0", "2147483647"], ["12345"], ["7"]]


def test_masked_paths_are_empty(root: dict[str, str]) -> None:
    """A masked file reads empty, a masked directory is empty and can't be written; a missing one is no error."""
    assert root["masked"].splitlines()[:3] == ["0", "0", "0"]
    assert "Read-only file system" in root["masked"]


def test_readonly_paths_cant_be_written(root: dict[str, str]) -> None:
    """linux.readonlyPaths can be read only; /proc/sys is one of them."""
    assert root["readonly"].splitlines()[0] == "fixed"
    assert "Read-only file system" in root["readonly"]
    assert "Read-only file system" in root["procsys"] or "can't create" in root["procsys"]


def test_devices_are_made_and_others_are_forbidden(root: dict[str, str]) -> None:
    """linux.devices with mode and owner; the default ones are there; one that no rule allows can't be opened."""
    made = root["made"].splitlines()
    assert made[0] == "character special file 640 5 6 1 5"
    assert made[1] == "character special file 666 0 0 1 3"
    assert made[2] == "00000000", "/dev/made is a zero device and can be read"
    devices = root["devices"].splitlines()
    assert devices[:5] == [
        f"/dev/{name} 1:{minor} 666"
        for name, minor in zip(("null", "zero", "full", "random", "urandom"), ("3", "5", "7", "8", "9"), strict=True)
    ]
    assert devices[5] == "/dev/tty 5:0 666"
    assert devices[6:10] == ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]
    assert devices[10] == "pts/ptmx"
    assert "Operation not permitted" in root["forbidden"]


def test_seccomp_rules_hold(root: dict[str, str]) -> None:
    """linux.seccomp: EPERM by default, errnoRet where given, and rules on arguments."""
    assert "can't create directory '/tmp/x': Operation not permitted" in root["seccomp"]
    assert "No space left on device" in root["seccomp"]
    assert "setpriority: Operation not permitted" in root["seccomp"]
    assert root["seccomp"].endswith("twelve")


def test_default_mounts_are_of_their_types(root: dict[str, str]) -> None:
    """proc, tmpfs, devpts, mqueue, sysfs and cgroup at their places, with their options."""
    mounts = {}
    for line in root["mounts"].splitlines():
        fields = line.split()
        dash = fields.index("-")
        mounts[fields[4]] = (fields[dash + 1], set(fields[5].split(",")), set(fields[dash + 3].split(",")))
    for destination, kind in (
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
    ):
        assert mounts[destination][0] == kind, destination
    assert "/sys/fs/cgroup" in mounts
    assert {"ro", "nosuid", "noexec", "nodev"} <= mounts["/sys"][1]
    assert "size=65536k" in mounts["/dev/shm"][2]
    assert {"gid=5", "mode=620", "ptmxmode=666"} <= mounts["/dev/pts"][2]
    assert not any(path.startswith("/tmp/rvt") for path in mounts), "nothing of the host's paths"


def test_the_process_is_alone_in_its_pid_namespace(root: dict[str, str]) -> None:
    """The script is PID 1, and /proc shows the container's processes only."""
    parent, count = root["pid"].splitlines()
    assert parent == "0"
    assert int(count) <= 5


def test_loopback_is_up_and_nothing_else_is_there(root: dict[str, str]) -> None:
    """A fresh network namespace that nobody filled: lo works, by IPv4 and IPv6; no other interface is up."""
    lines = root["loopback"].splitlines()
    assert lines[-2:] == ["v4", "v6"]
    up = [line for line in lines if ",UP" in line or "<UP" in line]
    assert len(up) == 1
    assert ": lo:" in up[0]


def test_an_unprivileged_user_keeps_only_ambient_capabilities(box: Box) -> None:
    """uid 1000: HOME from passwd, files are owned by it on the host, ambient capabilities survive, others don't."""
    container = box()
    container.bundle.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [2000]}
    container.bundle.process["capabilities"] = capability_set("CAP_NET_BIND_SERVICE")
    container.bundle.process["capabilities"]["bounding"].append("CAP_CHOWN")
    container.bundle.process["cwd"] = "/home/user"
    seen = facts(
        container,
        {
            "id": "id",
            "home": "echo $HOME",
            "caps": "grep Cap /proc/self/status",
            "write": "echo mine >file && stat -c '%u %g' file",
            "denied": "touch /etc/passwd",
        },
    )
    assert seen["id"].startswith("uid=1000(user) gid=1000(user) groups=")
    assert "2000(extra)" in seen["id"]
    assert seen["home"] == "/home/user"
    caps = {line.split()[0]: int(line.split()[1], 16) for line in seen["caps"].splitlines()}
    assert caps["CapEff:"] == caps["CapAmb:"] == 1 << 10
    assert caps["CapBnd:"] == 1 << 10 | 1
    assert seen["write"] == "1000 1000"
    assert "Permission denied" in seen["denied"]
    info = os.stat(f"{container.bundle.rootfs}/home/user/file")
    assert (info.st_uid, info.st_gid) == (1000, 1000), "owners on the host are those of the container"


def test_a_read_only_root_takes_no_writes(box: Box) -> None:
    """root.readonly: EROFS everywhere but on mounts of their own; the host's tree stays as it was."""
    container = box()
    container.bundle.config["root"]["readonly"] = True
    container.bundle.mount("/scratch", "tmpfs", "tmpfs", "mode=1777")
    os.makedirs(f"{container.bundle.rootfs}/scratch")
    seen = facts(
        container, {"root": "touch /file", "etc": "echo x >/etc/passwd", "tmpfs": "touch /scratch/x && echo ok"}
    )
    assert "Read-only file system" in seen["root"]
    assert "Read-only file system" in seen["etc"]
    assert seen["tmpfs"] == "ok"
    assert not os.path.exists(f"{container.bundle.rootfs}/file")


def test_without_a_namespace_of_names_and_groups(box: Box) -> None:
    """No uts namespace: the host's name. No cgroup namespace: /sys/fs/cgroup shows the container's own limits."""
    container = box(
        "sh", "-c", "hostname; cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
    )
    linux = container.bundle.linux
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] not in ("uts", "cgroup")]
    container.bundle.config.pop("hostname", None)
    container.bundle.resources["memory"] = {"limit": 100 << 20}
    assert container.run().text.splitlines() == [os.uname().nodename, str(100 << 20)]


def test_a_namespace_of_names_without_a_name_has_the_hosts(box: Box) -> None:
    """As `ctr run` leaves it out."""
    container = box("hostname")
    container.bundle.config.pop("hostname", None)
    assert container.run().expect(0).text == os.uname().nodename


def test_what_is_no_capability_isnt_one_by_another_name(box: Box) -> None:
    """What is said to be ignored is, in config.json and by exec."""
    container = box("sh", "-c", "grep CapBnd /proc/self/status; exec sleep 1000")
    sets = container.bundle.process["capabilities"]
    sets["bounding"] = ["CAP_KILL", "cap_sys_admin", "21"]
    sets["effective"] = sets["permitted"] = ["CAP_KILL"]
    sets["ambient"] = sets["inheritable"] = []
    container.launch()
    assert container.wait_stdout(b"\n").split()[1] == b"0" * 14 + b"20"
    shown = container.exec("grep", "CapBnd", "/proc/self/status", flags=["--cap", "cap_chown"]).expect(0)
    assert shown.stdout.split()[1] == b"0" * 14 + b"20"
    assert "ignoring unknown or unavailable capabilities" in str(shown.log)


@pytest.mark.differs("runc", "fails to pivot where the new root is the old one")
def test_the_hosts_root_can_be_a_containers(box: Box, runtime: Runtime) -> None:
    """root.path "/": unusual, and no reason to fail."""
    container = box("ls", runtime.scratch)
    container.bundle.config["root"] = {"path": "/", "readonly": True}
    container.bundle.config["mounts"] = [m for m in container.bundle.config["mounts"] if m["type"] != "cgroup"]
    assert "rootfs" in container.run().expect(0).text.split()


def test_a_user_namespace_maps_ids(box: Box) -> None:
    """uidMappings and gidMappings: root inside is 100000 outside, on the files it makes as well."""
    container = box()
    container.bundle.namespace("user")
    container.bundle.linux["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    container.bundle.linux["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    for directory, _, names in os.walk(container.bundle.rootfs):
        os.chown(directory, 100000, 200000)
        for name in names:
            if not name.startswith("busybox"):
                os.lchown(f"{directory}/{name}", 100000, 200000)
    seen = facts(
        container,
        {
            "id": "id -u; id -g",
            "map": "cat /proc/self/uid_map /proc/self/gid_map",
            "file": "touch /tmp/made && stat -c '%u %g' /tmp/made",
            "chown": "chown 5:6 /tmp/made && stat -c '%u %g' /tmp/made",
            "busybox": "stat -c '%u %g' /bin/busybox",
        },
    )
    assert seen["id"].splitlines() == ["0", "0"]
    assert [line.split() for line in seen["map"].splitlines()] == [["0", "100000", "65536"], ["0", "200000", "65536"]]
    assert seen["file"] == "0 0"
    assert seen["chown"] == "5 6"
    assert seen["busybox"] == "65534 65534", "the host's root isn't mapped"
    info = os.stat(f"{container.bundle.rootfs}/tmp/made")
    assert (info.st_uid, info.st_gid) == (100005, 200006)


@pytest.mark.differs("runc", "it refuses that")
def test_a_user_namespace_without_mappings_has_root_alone(box: Box) -> None:
    """As crun has it: the container's root is the host's, and nobody else is mapped."""
    container = box()
    container.bundle.namespace("user")
    for mount in container.bundle.config["mounts"]:
        mount["options"] = [option for option in mount["options"] if not option.startswith("gid=")]
    seen = facts(container, {"map": "cat /proc/self/uid_map /proc/self/gid_map", "made": "touch /tmp/made"})
    assert [line.split() for line in seen["map"].splitlines()] == [["0", "0", "1"]] * 2
    assert os.stat(f"{container.bundle.rootfs}/tmp/made").st_uid == 0


@pytest.mark.differs("runc", "1.1 knows neither personality nor domainname, scheduler nor ioPriority")
@pytest.mark.differs("crun", "1.8 knows neither scheduler nor ioPriority")
def test_newer_fields_of_the_spec_hold(box: Box) -> None:
    """domainname, linux.personality, process.scheduler and process.ioPriority (OCI runtime spec 1.1)."""
    container = box()
    container.bundle.config["ociVersion"] = "1.1.0"
    container.bundle.config["domainname"] = "example.org"
    container.bundle.linux["personality"] = {"domain": "LINUX32"}
    container.bundle.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    container.bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    seen = facts(
        container,
        {
            "domain": "cat /proc/sys/kernel/domainname",
            "machine": "uname -m",
            "policy": "cut -d ' ' -f 19,41 /proc/self/stat",
            "ioprio": "ionice",
        },
    )
    assert seen["domain"] == "example.org"
    assert seen["machine"] in ("i686", "i386", "armv8l")
    assert seen["policy"] == "7 3"
    assert seen["ioprio"] == "best-effort: prio 6"
    container = box()
    container.bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE"}
    assert facts(container, {"ioprio": "ionice"})["ioprio"] == "best-effort: prio 0"


@pytest.mark.differs("runc", "1.1 knows no time namespaces")
def test_a_time_namespace_has_its_offsets(box: Box) -> None:
    """linux.timeOffsets (OCI runtime spec 1.1), beside a new PID namespace as well as without one."""
    for kinds in (("time",), ("time", "pid")):
        container = box("cat", "/proc/self/timens_offsets")
        container.bundle.linux["timeOffsets"] = {
            "boottime": {"secs": 100_000},
            "monotonic": {"secs": 50, "nanosecs": 7},
        }
        container.bundle.without_namespace("pid")
        for kind in kinds:
            container.bundle.namespace(kind)
        assert container.run().expect(0).text.split() == ["monotonic", "50", "7", "boottime", "100000", "0"]


def _set(path: str, value: Any) -> Callable[[Bundle], None]:
    """A change of the config at a dotted path; None takes the field away."""

    def change(bundle: Bundle) -> None:
        target: Any = bundle.config
        *parents, last = path.split(".")
        for key in parents:
            target = target[int(key)] if isinstance(target, list) else target[key]
        if value is None:
            del target[last]
        elif isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value

    return change


# What both refuse: the field as runvm names it
BAD_CONFIGS: list[tuple[str, Any]] = [
    ("process.args", []),
    ("process.args", "true"),
    ("process.args", [1]),
    ("process.cwd", "relative"),
    ("process.cwd", ""),
    ("process.user.uid", "root"),
    ("process.user.uid", -1),
    ("process.env", {"A": "b"}),
    ("process.rlimits", [{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]),
    ("root", None),
    ("root.path", "no-such-directory"),
    ("root.readonly", "yes"),
    ("mounts", {"destination": "/x"}),
    ("linux.namespaces", [{"type": "nonsense"}]),
    ("linux.namespaces", [{"type": "mount"}, {"type": "mount"}]),
    ("linux.namespaces.4.path", "/no/such/netns"),
    ("linux.sysctl", {"kernel.no.such.sysctl": "1"}),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_NONSENSE"}),
    ("linux.resources.memory", {"limit": "64M"}),
    ("linux.resources.cpu", {"quota": 1}),
    ("linux.resources.cpu", {"period": 2_000_000}),
    ("hooks", {"prestart": [{"path": 5}]}),
    ("ociVersion", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_bad_config_is_refused_naming_the_field(box: Box, runtime: Runtime, field: str, value: Any) -> None:
    """create fails with one line (that names the field, for runvm) and leaves nothing behind."""
    container = box()
    _set(field, value)(container.bundle)
    result = container.try_create()
    assert result.code == 1, result.describe()
    assert result.error
    if runtime.is_vm:
        assert "\n" not in result.error.strip()
        named = field.removesuffix(".4.path")
        assert named.replace("linux.seccomp", "seccomp") in result.error or field in result.error, result.error
    assert runtime.call("state", container.id).error == "container does not exist"
    assert not os.path.exists(container.pid_file)


@pytest.mark.only("runvm", "its own annotations, and what runc ignores")
@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("annotations", {"io.runvm.vcpus": "many"}, "io.runvm.vcpus"),
        ("annotations", {"io.runvm.nonsense": "1"}, "io.runvm.nonsense"),
        ("annotations", {"io.runvm.hypervisor": "/tmp/evil"}, "io.runvm.hypervisor"),
        ("ociVersion", "2.0.0", "ociVersion"),
        ("ociVersion", "one", "ociVersion"),
        ("process.capabilities", {"bounding": "CAP_KILL"}, "process.capabilities.bounding"),
        ("linux.resources.cpu", {"quota": "half"}, "linux.resources.cpu.quota"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_value_that_runc_lets_pass_is_refused(
    box: Box, runtime: Runtime, field: str, value: Any, wanted: str
) -> None:
    """An annotation that a container may not choose, an unknown version, a field of the wrong type."""
    container = box()
    _set(field, value)(container.bundle)
    result = container.try_create()
    assert result.code == 1, result.describe()
    assert wanted in result.error
    assert container.id not in runtime.ids()


def test_labels_of_apparmor_and_selinux_dont_fail_a_start(box: Box, runtime: Runtime) -> None:
    """Engines send labels on hosts that have the modules; in a VM they mean nothing, and the start goes on."""
    if not runtime.is_vm:
        pytest.skip("runc fails where the host lacks the security module")
    container = box("true")
    container.bundle.process["apparmorProfile"] = "docker-default"
    container.bundle.process["selinuxLabel"] = "system_u:system_r:container_t:s0:c1,c2"
    container.bundle.linux["mountLabel"] = "system_u:object_r:container_file_t:s0:c1,c2"
    container.run().expect(0)
