"""config.json: what engines send is taken, what is bad is named in one line by its JSON path."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runvm.errors import SpecError, UnsupportedError
from runvm.oci import rules, shapes, spec

DATA = Path(__file__).parent / "data"
RECORDED = sorted((DATA / "callers").glob("*.json"))

Config = dict[str, Any]
Load = Callable[[Config], spec.Spec]
ABSENT = object()


def change(config: Config, path: str, value: object) -> None:
    """Set what the dotted *path* leads to; ABSENT takes it away; missing objects are made, '+' appends to an array."""
    *steps, last = path.split(".")
    node: Any = config
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
    if isinstance(node, list):
        if last == "+":
            node.append(value)
        elif value is ABSENT:
            del node[int(last)]
        else:
            node[int(last)] = value
    elif value is ABSENT:
        del node[last]
    else:
        node[last] = value


# --- what is taken


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_engines_sent_is_taken(path: Path, load: Load) -> None:
    config = json.loads(path.read_text())
    config["root"]["path"] = "rootfs"
    loaded = load(config)
    spec.unsupported(loaded)
    assert loaded.warnings == ()
    assert loaded.process.args == tuple(config["process"]["args"])
    assert [mount.destination for mount in loaded.mounts] == [mount["destination"] for mount in config["mounts"]]
    assert loaded.annotations == config.get("annotations", {})
    assert loaded.cgroups_path == config["linux"]["cgroupsPath"]
    assert loaded.raw == config


def test_dockers_hook_keeps_the_argv_that_selects_what_dockerd_does(load: Load) -> None:
    config = json.loads((DATA / "callers" / "docker-run.json").read_text())
    config["root"]["path"] = "rootfs"
    hooks = load(config).hooks
    assert list(hooks) == ["prestart"]
    (hook,) = hooks["prestart"]
    assert hook.path == "/proc/26248/exe"
    assert hook.args[:2] == ("libnetwork-setkey", "-exec-root=/var/run/docker")
    assert hook.env is None
    assert hook.timeout_s is None


def test_a_user_namespace_of_podman_has_its_mappings(load: Load) -> None:
    config = json.loads((DATA / "callers" / "podman-userns.json").read_text())
    config["root"]["path"] = "rootfs"
    loaded = load(config)
    assert loaded.uid_mappings == loaded.gid_mappings == (spec.IdMapping(0, 100000, 5000),)
    assert loaded.namespaces["user"] == ""


def test_a_namespace_is_new_joined_or_the_hosts(config: Config, load: Load) -> None:
    config["linux"]["namespaces"] = [
        {"type": "uts"},
        {"type": "mount"},
        {"type": "ipc", "path": "/proc/7/ns/ipc"},
    ]
    assert load(config).namespaces == {"uts": "", "mount": "", "ipc": "/proc/7/ns/ipc"}


def test_the_typed_fields(config: Config, load: Load, bundle: Path) -> None:
    config["domainname"] = "example.org"
    config["process"]["consoleSize"] = {"height": 24, "width": 70000}
    config["process"]["user"] = {"uid": 7, "gid": 8}
    config["linux"]["devices"] = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0},
        {"path": "/dev/fifo", "type": "p"},
    ]
    config["linux"]["rootfsPropagation"] = "rslave"
    loaded = load(config)
    assert loaded.bundle == str(bundle)
    assert loaded.text == (bundle / "config.json").read_bytes()
    assert loaded.root_path == str(bundle / "rootfs")
    assert loaded.root_readonly is True
    assert (loaded.hostname, loaded.domainname) == ("runc", "example.org")
    assert loaded.process == spec.Process(
        args=("sh",),
        env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"),
        cwd="/",
        uid=7,
        gid=8,
        terminal=True,
        console_size=(24, 65535),
    )
    assert loaded.devices == (
        spec.Device("/dev/fuse", "c", 10, 229, 438, 0, 0),
        spec.Device("/dev/fifo", "p", 0, 0, None, None, None),
    )
    assert loaded.rootfs_propagation == "rslave"
    assert loaded.resources == {"devices": [{"allow": False, "access": "rwm"}]}


def test_null_is_absence(config: Config, load: Load) -> None:
    """Go's JSON leaves a null field as it was; what reads the raw object after us never meets one."""
    config["hooks"] = None
    config["annotations"] = None
    config["mounts"][0]["options"] = None
    config["process"]["rlimits"] = None
    config["linux"]["resources"]["memory"] = {"limit": None}
    loaded = load(config)
    assert "null" not in json.dumps(loaded.raw)
    assert loaded.resources["memory"] == {}


def test_unknown_fields_are_kept_and_ignored(config: Config, load: Load) -> None:
    config["futureField"] = {"a": [1, None]}
    config["process"]["novelty"] = 5
    config["process"]["capabilities"]["novel"] = None
    config["linux"]["namespaces"] = [*config["linux"]["namespaces"], {"type": "time"}]
    config["linux"]["timeOffsets"] = {"novel": 5}
    config["linux"]["netDevices"] = {}
    config["linux"]["memoryPolicy"] = None
    loaded = load(config)
    spec.unsupported(loaded)
    assert loaded.raw["futureField"] == {"a": [1, None]}


@pytest.mark.parametrize("limit", [{}, {"limit": None}])
def test_no_limit_of_processes_may_be_written_down(limit: Config, config: Config, load: Load) -> None:
    """Since runtime-spec 1.3."""
    config["linux"]["resources"]["pids"] = limit
    assert load(config).resources["pids"] == {}


def test_processors_of_an_exec_are_a_list(config: Config, load: Load) -> None:
    """As runc reads it: spaces and empty parts are nothing."""
    config["process"]["execCPUAffinity"] = {"initial": "0-3, 7,,1023", "final": ""}
    load(config)


@pytest.mark.parametrize("version", ["1.0.0", "1.0.2-dev", "1.1.0+dev", "1.1.0-rc.2", "1.2.0", "1.0"])
def test_versions_of_the_first_major_are_taken(version: str, config: Config, load: Load) -> None:
    config["ociVersion"] = version
    assert load(config).oci_version == version


def test_relative_bind_sources_start_at_the_bundle(config: Config, load: Load, bundle: Path) -> None:
    config["mounts"] = [
        {"destination": "/a", "source": "vol/../data", "type": "none", "options": ["ro", "rbind"]},
        {"destination": "/b", "source": "/abs/../x", "options": ["bind"]},
        {"destination": "/c", "source": "tmpfs", "type": "tmpfs"},
    ]
    a, b, c = load(config).mounts
    assert (a.source, b.source, c.source) == (f"{bundle}/data", "/abs/../x", "tmpfs")
    assert (a.is_bind, b.is_bind, c.is_bind) == (True, True, False)


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("/file/", "/file"),
        ("//a//b/", "/a/b"),
        ("/proc/../data", "/data"),
        ("/../x/./y", "/x/y"),
        ("/", "/"),
        ("//", "/"),
    ],
)
def test_a_mount_destination_is_cleaned(config: Config, load: Load, given: str, cleaned: str) -> None:
    """As by runc; the guest's runtime gets it so, too."""
    config["mounts"] = [{"destination": given, "type": "tmpfs"}]
    loaded = load(config)
    assert loaded.mounts[0].destination == loaded.raw["mounts"][0]["destination"] == cleaned


def test_a_relative_mount_destination_is_taken_from_the_root_with_a_warning(config: Config, load: Load) -> None:
    config["mounts"] = [{"destination": "run/x", "type": "tmpfs"}]
    loaded = load(config)
    assert loaded.mounts[0].destination == "/run/x"
    assert loaded.raw["mounts"][0]["destination"] == "/run/x"
    assert loaded.warnings == ('mounts[0]: mount destination "run/x" is not absolute',)


def test_unknown_capabilities_are_warned_of(config: Config, load: Load) -> None:
    config["process"]["capabilities"]["bounding"].append("CAP_FOO")
    assert load(config).warnings == ('ignoring unknown or unavailable capabilities: "CAP_FOO"',)


@pytest.mark.parametrize("seccomp", [{}, {"defaultAction": ""}, {"defaultAction": "", "architectures": []}])
def test_a_seccomp_that_says_nothing_is_none(seccomp: Config, config: Config, load: Load) -> None:
    config["linux"]["seccomp"] = seccomp
    assert "seccomp" not in load(config).raw["linux"]


def test_the_root_directorys_symlinks_are_resolved(config: Config, load: Load, bundle: Path) -> None:
    (bundle / "link").symlink_to("rootfs")
    config["root"]["path"] = "link"
    assert load(config).root_path == str(bundle / "rootfs")


def test_the_bundles_symlinks_are_resolved_as_by_chdir(config: Config, load: Load, bundle: Path) -> None:
    load(config)
    (bundle.parent / "link").symlink_to(bundle)
    assert spec.load(str(bundle.parent / "link")).bundle == str(bundle)


def test_another_config_file_is_relative_to_the_bundle(config: Config, bundle: Path) -> None:
    config["process"]["args"] = ["a", 5]
    (bundle / "other.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match=r"^other\.json: process\.args\[1\]: expected a string, got 5$"):
        spec.load(str(bundle), "other.json")


@pytest.mark.parametrize(
    "key",
    [
        "kernel.shmmax",
        "fs.mqueue.msg_max",
        "net.ipv4.ip_forward",
        "net/ipv4/conf/eth0.1/rp_filter",
        "kernel.domainname",
    ],
)
def test_sysctls_of_a_namespace_of_its_own(key: str, config: Config, load: Load) -> None:
    config["linux"]["sysctl"] = {key: "1"}
    assert load(config).raw["linux"]["sysctl"] == {key: "1"}


# --- what is refused

BAD = [
    ("ociVersion", ABSENT, "ociVersion: must be set"),
    ("ociVersion", "", 'ociVersion: must be a version such as "1.1.0", got ""'),
    ("ociVersion", "abc", 'ociVersion: must be a version such as "1.1.0", got "abc"'),
    ("ociVersion", "2.0.0", 'ociVersion: version "2.0.0" is not supported, only 1.x is'),
    ("ociVersion", "0.9.0", 'ociVersion: version "0.9.0" is not supported, only 1.x is'),
    ("ociVersion", 1.1, "ociVersion: expected a string, got 1.1"),
    ("process", ABSENT, "process: must be set"),
    ("process", None, "process: must be set"),
    ("process", [], "process: expected an object, got an array"),
    ("process.args", ABSENT, "process.args: must be set"),
    ("process.args", [], "process.args: must not be empty"),
    ("process.args", "sh", 'process.args: expected an array, got "sh"'),
    ("process.args.+", 5, "process.args[1]: expected a string, got 5"),
    ("process.args.+", "a\0b", "process.args[1]: holds a NUL byte"),
    ("process.args.+", "\ud800", "process.args[1]: holds half of a surrogate pair, which is no character"),
    ("process.args.+", None, "process.args[1]: expected a string, got null"),
    ("process.cwd", ABSENT, "process.cwd: must be set"),
    ("process.cwd", "", "process.cwd: must not be empty"),
    ("process.cwd", "tmp", 'process.cwd: must be an absolute path, got "tmp"'),
    ("process.env.+", "FOO", "process.env[2]: invalid environment variable: \"FOO\" has no '='"),
    ("process.env.+", "=x", 'process.env[2]: environment variable name can\'t be empty: "=x"'),
    ("process.terminal", "yes", 'process.terminal: expected true or false, got "yes"'),
    ("process.terminal", 1, "process.terminal: expected true or false, got 1"),
    ("process.consoleSize", {"height": 1}, "process.consoleSize.width: must be set"),
    ("process.user.uid", -1, "process.user.uid: must be from 0 to 4294967294, got -1"),
    ("process.user.uid", 4294967295, "process.user.uid: must be from 0 to 4294967294, got 4294967295"),
    ("process.user.uid", 1.0, "process.user.uid: expected an integer, got 1.0"),
    ("process.user.uid", True, "process.user.uid: expected an integer, got true"),
    ("process.user.additionalGids", [0, "x"], 'process.user.additionalGids[1]: expected an integer, got "x"'),
    ("process.user.umask", 2**32, "process.user.umask: must be from 0 to 4294967295, got 4294967296"),
    ("process.capabilities.bounding", "CAP_KILL", 'process.capabilities.bounding: expected an array, got "CAP_KILL"'),
    ("process.rlimits.0.hard", ABSENT, "process.rlimits[0].hard: must be set"),
    ("process.rlimits.0.soft", 5000, "process.rlimits[0].soft: 5000 is above the hard limit 1024"),
    ("process.rlimits.0.soft", -1, "process.rlimits[0].soft: must be from 0 to 18446744073709551615, got -1"),
    (
        "process.rlimits.+",
        {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1},
        "process.rlimits[1].type: RLIMIT_NOFILE is set twice",
    ),
    ("process.oomScoreAdj", 1001, "process.oomScoreAdj: must be from -1000 to 1000, got 1001"),
    ("process.scheduler", {"nice": 1}, "process.scheduler.policy: must be set"),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}, "process.ioPriority.priority: must be from 0"),
    ("root", ABSENT, "root: must be set"),
    ("root.path", "", "root.path: must not be empty"),
    ("root.readonly", "no", 'root.readonly: expected true or false, got "no"'),
    ("hostname", "x" * 65, "hostname: longer than the 64 bytes that a kernel keeps"),
    ("linux.namespaces.3", ABSENT, "hostname: unable to set hostname without a private UTS namespace"),
    ("mounts.0.destination", ABSENT, "mounts[0].destination: must be set"),
    ("mounts.0.destination", "", "mounts[0].destination: must not be empty"),
    ("mounts.0.type", ABSENT, 'mounts[0].type: must be set unless the options have "bind" or "rbind"'),
    ("mounts.1.options.+", {}, "mounts[1].options[4]: expected a string, got an object"),
    (
        "mounts.+",
        {"destination": "/x", "type": "bind", "source": "/x"},
        'mounts[7].options: a mount of type "bind" needs "bind" or "rbind"',
    ),
    ("mounts.+", {"destination": "/x", "options": ["bind"]}, "mounts[7].source: must be set for a bind mount"),
    ("mounts.0.source", "a\0b", "mounts[0].source: holds a NUL byte"),
    ("hooks", {"prestart": [{"args": []}]}, "hooks.prestart[0].path: must be set"),
    (
        "hooks",
        {"poststop": [{"path": "bin/x"}]},
        'hooks.poststop[0].path: must be an absolute path, got "bin/x"',
    ),
    ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "hooks.poststop[0].timeout: must be from 1 to 2147483647"),
    ("annotations", {"a b": 1}, 'annotations["a b"]: expected a string, got 1'),
    ("linux.namespaces.+", {"type": "foo"}, 'linux.namespaces[5].type: unknown namespace "foo" (known: cgroup, ipc,'),
    ("linux.namespaces.+", {"type": "pid"}, 'linux.namespaces[5].type: duplicated namespace "pid"'),
    (
        "linux.namespaces.2.path",
        "proc/1/ns/ipc",
        'linux.namespaces[2].path: must be an absolute path, got "proc/1/ns/ipc"',
    ),
    ("linux.namespaces.4", ABSENT, "linux.maskedPaths: unable to restrict sys entries without a private mount"),
    ("linux.sysctl", {"vm.swappiness": "1"}, 'linux.sysctl["vm.swappiness"]: sysctl "vm.swappiness" is not in a sep'),
    ("linux.sysctl", {"kernel.hostname": "x"}, "is not allowed as it conflicts with the OCI"),
    ("linux.sysctl", {"net.ipv4.ip_forward": 1}, 'linux.sysctl["net.ipv4.ip_forward"]: expected a string, got 1'),
    ("linux.devices", [{"type": "c"}], "linux.devices[0].path: must be set"),
    ("linux.devices", [{"path": "/dev/x", "type": "x"}], 'linux.devices[0].type: unknown device type "x" (known: b,'),
    ("linux.devices", [{"path": "/dev/x", "type": "c", "major": 1}], "linux.devices[0].minor: must be set"),
    ("linux.resources.devices.0.access", "", "linux.resources.devices[0].access: must not be empty"),
    ("linux.resources.devices.0.access", "q", "linux.resources.devices[0].access: must be made of r, w and m, got"),
    ("linux.resources.devices.0.type", "z", 'linux.resources.devices[0].type: unknown cgroup device type "z" (known:'),
    ("linux.resources.memory", {"limit": 2**63}, "linux.resources.memory.limit: must be from -9223372036854775808"),
    ("linux.resources.cpu", {"shares": -1}, "linux.resources.cpu.shares: must be from 0"),
    ("linux.resources.pids", {"limit": "5"}, 'linux.resources.pids.limit: expected an integer, got "5"'),
    (
        "process.execCPUAffinity",
        {"initial": "a"},
        "process.execCPUAffinity.initial: must be a list of CPUs such as 0-3",
    ),
    ("process.execCPUAffinity", {"final": "0-"}, "process.execCPUAffinity.final: must be a list of CPUs such as 0-3,7"),
    ("process.execCPUAffinity", {"final": "3-1"}, 'process.execCPUAffinity.final: invalid CPU range "3-1"'),
    ("process.execCPUAffinity", {"final": "1024"}, "process.execCPUAffinity.final: values larger than 1023 are not"),
    ("process.execCPUAffinity", {"initial": " ,"}, 'process.execCPUAffinity.initial: names no CPU: " ,"'),
    (
        "linux.resources.hugepageLimits",
        [{"pageSize": "2M", "limit": 1}],
        'linux.resources.hugepageLimits[0].pageSize: must be a huge page size such as "2MB", got "2M"',
    ),
    ("linux.resources.unified", {"memory.high": 5}, 'linux.resources.unified["memory.high"]: expected a string, got 5'),
    (
        "linux.resources.blockIO",
        {"throttleReadBpsDevice": [{"major": 8, "rate": 1}]},
        "linux.resources.blockIO.throttleReadBpsDevice[0].minor: must be set",
    ),
    ("linux.resources.blockIO", {"weight": 1001}, "linux.resources.blockIO.weight: must be from 0 to 1000, got 1001"),
    ("linux.resources.cpu", {"quota": 999}, "linux.resources.cpu.quota: must be from 1000 to 17592186044415 microsec"),
    ("linux.resources.cpu", {"period": 1_000_001}, "linux.resources.cpu.period: must be from 1000 to 1000000 microsec"),
    ("linux.resources.cpu", {"quota": 2000, "burst": 2001}, "linux.resources.cpu.burst: 2001 is above the quota"),
    ("linux.rootfsPropagation", "foo", 'linux.rootfsPropagation: unknown propagation "foo" (known: private, rpriv'),
    ("linux.seccomp", {"defaultAction": "FOO"}, 'linux.seccomp.defaultAction: unknown seccomp action "FOO"'),
    ("linux.seccomp", {"syscalls": [{}]}, "linux.seccomp.defaultAction: must be set"),
    (
        "linux.seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]},
        'linux.seccomp.architectures[0]: unknown seccomp architecture "SCMP_ARCH_VAX"',
    ),
    (
        "linux.seccomp",
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}]},
        "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_ALLOW takes no errno",
    ),
    ("linux.personality", {"domain": "BSD"}, 'linux.personality.domain: unknown execution domain "BSD" (known: LINUX,'),
    ("linux.timeOffsets", {"monotonic": {"secs": 1}}, "linux.timeOffsets: needs a time namespace in linux.namespaces"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_a_bad_field_is_named(path: str, value: object, message: str, config: Config, load: Load) -> None:
    change(config, path, value)
    with pytest.raises(SpecError) as caught:
        load(config)
    text = str(caught.value)
    assert text.startswith("config.json: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < 700


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        ([(1, 1000, 1)], "linux.uidMappings: user namespaces enabled, but id 0 of the container isn't mapped"),
        ([(0, 1000, 10), (5, 2000, 1)], "linux.uidMappings[1].containerID: overlaps with an earlier mapping"),
        ([(0, 1000, 10), (10, 1009, 1)], "linux.uidMappings[1].hostID: overlaps with an earlier mapping"),
        ([(0, 2, 2**32 - 1)], "linux.uidMappings[0].hostID: ends beyond the largest id there is"),
        ([(0, 1000, 0)], "linux.uidMappings[0].size: must be from 1 to 4294967295, got 0"),
        ([(i, i, 1) for i in range(341)], "linux.uidMappings: more than the 340 that a kernel takes"),
    ],
)
def test_bad_mappings(mappings: list[tuple[int, int, int]], message: str, config: Config, load: Load) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"]["uidMappings"] = [{"containerID": c, "hostID": h, "size": s} for c, h, s in mappings]
    with pytest.raises(SpecError) as caught:
        load(config)
    assert str(caught.value) == f"config.json: {message}"


def test_a_net_sysctl_in_the_hosts_network_is_refused(config: Config, load: Load) -> None:
    config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    config["linux"]["namespaces"][1]["path"] = "/proc/self/ns/net"
    with pytest.raises(SpecError, match="not allowed in host network namespace"):
        load(config)
    del config["linux"]["namespaces"][1]
    with pytest.raises(SpecError, match="not allowed in host network namespace"):
        load(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON: Expecting value"),
        (b'{"a":', "not valid JSON: Expecting value"),
        (b"[]", "expected an object, got an array"),
        (b"null", "expected an object, got null"),
        (b'{"a": NaN}', "not valid JSON: NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON: "),
        (b"[" * 100000, "not valid JSON: nested too deep"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"{} trailing", "not valid JSON: Extra data"),
        ("{}".encode("utf-16"), "not UTF-8 at byte 0"),
    ],
)
def test_what_is_not_json_is_refused(text: bytes, message: str, bundle: Path) -> None:
    (bundle / "config.json").write_bytes(text)
    with pytest.raises(SpecError) as caught:
        spec.load(str(bundle))
    assert str(caught.value).startswith(f"config.json: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_config_is_said_in_runcs_words(bundle: Path) -> None:
    with pytest.raises(SpecError, match=r"^JSON specification file config\.json not found"):
        spec.load(str(bundle))


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere.*: no such file or directory"):
        spec.load(str(tmp_path / "nowhere"))


def test_a_relative_bundle_in_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim's working directory may be deleted while it still calls us."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SpecError, match="no such file or directory"):
        spec.load("bundle")


@pytest.mark.parametrize(("kind", "message"), [("absent", "no such file or directory"), ("file", "not a directory")])
def test_the_root_directory_must_be_there(kind: str, message: str, config: Config, load: Load, bundle: Path) -> None:
    config["root"]["path"] = "r"
    if kind == "file":
        (bundle / "r").touch()
    with pytest.raises(SpecError) as caught:
        load(config)
    assert str(caught.value) == f'config.json: root.path: "{bundle}/r": {message}'


def test_a_user_namespace_has_mappings_of_both_kinds_or_none() -> None:
    """None: the guest's runtime maps root alone, as crun does."""
    one = [{"containerID": 0, "hostID": 0, "size": 1}]
    rules.check_mappings({}, {"user": ""})
    rules.check_mappings({"uidMappings": one, "gidMappings": one}, {"user": ""})
    for given, missing in (("uidMappings", "gidMappings"), ("gidMappings", "uidMappings")):
        with pytest.raises(shapes.Invalid, match="user namespaces enabled, but no mappings found") as caught:
            rules.check_mappings({given: one}, {"user": ""})
        assert missing in caught.value.path


@pytest.mark.parametrize("named", [False, True])
def test_a_process_comes_by_a_pipe(tmp_path: Path, named: bool) -> None:
    """`exec --process /dev/stdin` or <(…): in parts, and also where the writer comes late."""
    described = {"args": ["true"], "cwd": "/", "env": ["LONG=" + "x" * 100_000], "user": {"uid": 0, "gid": 0}}
    data = json.dumps(described).encode()
    reader, writer = os.pipe()
    path = f"/proc/self/fd/{reader}"
    if named:
        path = f"{tmp_path}/fifo"
        os.mkfifo(path)

    def write() -> None:
        time.sleep(0.2)
        with open(path if named else writer, "wb") as file:
            file.write(data[:1000])
            file.flush()
            time.sleep(0.2)
            file.write(data[1000:])

    thread = threading.Thread(target=write)
    thread.start()
    assert spec.load_process(path) == described
    thread.join(10)
    os.close(reader)


def test_only_a_regular_file_is_read(bundle: Path) -> None:
    """A FIFO or a socket in config.json's place is refused at once: nobody waits for its other end."""
    os.mkfifo(bundle / "config.json")
    with pytest.raises(SpecError, match="not a regular file"):
        spec.load(str(bundle))
    (bundle / "config.json").unlink()
    (bundle / "config.json").mkdir()
    with pytest.raises(SpecError, match="not a regular file"):
        spec.load(str(bundle))
    with pytest.raises(SpecError, match="not a regular file"):
        spec.load(str(bundle), "/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(bundle / "socket.json"))
    with pytest.raises(SpecError, match=r"socket\.json"):
        spec.load(str(bundle), "socket.json")
    listener.close()


def test_a_file_beyond_the_limit_is_not_read(bundle: Path) -> None:
    with open(bundle / "config.json", "wb") as file:
        file.truncate(spec.MAX_BYTES + 1)
    with pytest.raises(SpecError, match="larger than 16777216 bytes"):
        spec.load(str(bundle))


# --- labels, and what a virtual machine can't do


def test_labels_of_the_hosts_security_modules_are_taken_and_named(config: Config, load: Load) -> None:
    config["process"]["apparmorProfile"] = "docker-default"
    config["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0"
    config["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0"
    loaded = load(config)
    spec.unsupported(loaded)
    assert spec.host_labels(loaded) == ["process.apparmorProfile", "process.selinuxLabel", "linux.mountLabel"]


def test_no_labels(config: Config, load: Load) -> None:
    config["process"]["apparmorProfile"] = ""
    assert spec.host_labels(load(config)) == []


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("linux.intelRdt", {"closID": "x"}, "linux.intelRdt"),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}, "linux.seccomp.defaultAction"),
        (
            "linux.seccomp",
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_NOTIFY"}]},
            "linux.seccomp.syscalls[0].action",
        ),
        (
            "mounts.0.uidMappings",
            [{"containerID": 0, "hostID": 1, "size": 1}],
            "mounts[0].uidMappings",
        ),
        ("mounts.1.options.+", "idmap=uids=0-1-10", "mounts[1].options"),
        ("linux.namespaces.4.path", "/proc/1/ns/mnt", "linux.namespaces"),
        ("linux.netDevices", {"eth1": {"name": "eth0"}}, "linux.netDevices"),
        ("linux.memoryPolicy", {"mode": "MPOL_INTERLEAVE", "nodes": "0-1"}, "linux.memoryPolicy"),
    ],
)
def test_what_a_virtual_machine_cannot_do_is_named(
    path: str, value: object, field: str, config: Config, load: Load
) -> None:
    change(config, path, value)
    loaded = load(config)
    with pytest.raises(UnsupportedError) as caught:
        spec.unsupported(loaded)
    assert str(caught.value).startswith(field + ": ")


# --- the parts that other commands read


def test_a_process_file_is_checked(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "process.json"
    path.write_text(json.dumps(config["process"]))
    assert spec.load_process(str(path)) == config["process"]
    config["process"]["cwd"] = "tmp"
    path.write_text(json.dumps(config["process"]))
    with pytest.raises(SpecError, match=rf'^{path}: cwd: must be an absolute path, got "tmp"$'):
        spec.load_process(str(path))
    config["process"].update(cwd="/", env=["X"])
    path.write_text(json.dumps(config["process"]))
    with pytest.raises(SpecError, match=r"env\[0\]: invalid environment variable"):
        spec.load_process(str(path))
    with pytest.raises(SpecError, match="no such file or directory"):
        spec.load_process(str(tmp_path / "absent"))


def test_resources_are_checked() -> None:
    assert spec.load_resources(b'{"memory": {"limit": 1, "swap": null}}') == {"memory": {"limit": 1}}
    with pytest.raises(SpecError, match=r'^resources: cpu\.quota: expected an integer, got "1"$'):
        spec.load_resources(b'{"cpu": {"quota": "1"}}')
    with pytest.raises(SpecError, match=r"^resources: not valid JSON"):
        spec.load_resources(b"")
    with pytest.raises(SpecError, match=r"^resources: cpu\.quota: must be from 1000"):
        spec.load_resources(b'{"cpu": {"quota": 1}}')


@pytest.mark.parametrize(
    "cpu", [{"quota": -1, "period": 0}, {"quota": 0}, {"quota": 1000, "burst": 1000}, {"burst": 5}], ids=str
)
def test_cpu_time_without_a_limit_or_with_the_least(cpu: Config, config: Config, load: Load) -> None:
    change(config, "linux.resources.cpu", cpu)
    assert load(config).resources["cpu"] == cpu


def test_hooks_come_back_from_a_state_file() -> None:
    hooks = spec.parse_hooks({"poststop": [{"path": "/bin/x", "env": []}], "prestart": []})
    assert hooks == {"poststop": (spec.Hook("/bin/x", ("/bin/x",), (), None),)}
    with pytest.raises(SpecError, match=r"^hooks: poststop\[0\]\.path: must be set$"):
        spec.parse_hooks({"poststop": [{}]})
