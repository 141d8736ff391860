"""config.json rewritten for the guest."""

from __future__ import annotations

import json
import os
import resource
import socket
from typing import TYPE_CHECKING, Any

import pytest

from runvm.container import guest_spec
from runvm.container.host_view import Made, ViewPlace
from runvm.errors import SpecError, UnsupportedError
from runvm.oci import spec
from runvm.protocol import names

if TYPE_CHECKING:
    from pathlib import Path


def planned(bundle: Path, **fields: Any) -> guest_spec.GuestPlan:
    """The plan for a small config.json with *fields*."""
    (bundle / "rootfs").mkdir()
    process = {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    config = {"ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs"}, **fields}
    (bundle / "config.json").write_text(json.dumps(config))
    return guest_spec.plan(spec.load(os.fspath(bundle)), "name")


def test_an_overlay_is_the_hosts(tmp_path: Path) -> None:
    """Podman's volume with :O: the layers are the host's directories, so the host mounts it and the guest binds it."""
    options = ["lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "nosuid", "private"]
    mount = {"destination": "/v", "type": "overlay", "source": "/merge", "options": options}
    plan = planned(tmp_path, mounts=[mount])
    (share,) = (share for name, share in plan.shares.items() if name != "rootfs")
    assert share.overlay == "lowerdir=/a:/b,upperdir=/u,workdir=/w"
    (seen,) = plan.spec["mounts"]
    assert (seen["type"], seen["options"]) == ("bind", ["bind", "nosuid", "private"])
    assert seen["source"].startswith(f"{names.SHARE}/{names.CONTAINERS}/{plan.place}/")


@pytest.mark.parametrize("propagation", ["private", "rprivate", "rslave", "", "shared"])
def test_a_private_root_has_private_mounts(tmp_path: Path, propagation: str) -> None:
    """runc makes all private before it binds anything."""
    (tmp_path / "source").mkdir()
    mount = {"destination": "/v", "type": "bind", "source": "source", "options": ["rbind", "rslave"]}
    plan = planned(tmp_path, mounts=[mount], linux={"rootfsPropagation": propagation} if propagation else {})
    wanted = propagation.endswith("private")
    assert [share.private for share in plan.shares.values()] == [wanted, wanted]


def test_limits_that_are_not_set_are_the_callers(tmp_path: Path) -> None:
    """As with runc, whose container inherits them."""
    own = {"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}
    limits = guest_spec.with_limits({"args": ["sh"], "rlimits": [own]})["rlimits"]
    assert limits[0] == own
    assert len({limit["type"] for limit in limits}) == len(limits) == 16
    soft, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    assert {"type": "RLIMIT_MSGQUEUE", "soft": soft, "hard": hard} in limits


def test_a_shared_mount_stays_shared(tmp_path: Path) -> None:
    """runc sets the propagation of the root before what is mounted below it, crun after."""
    (tmp_path / "source").mkdir()
    mount = {"destination": "/v", "type": "bind", "source": "source", "options": ["rbind", "rshared"]}
    assert planned(tmp_path, mounts=[mount], linux={}).spec["linux"]["rootfsPropagation"] == "private"
    (tmp_path / "other" / "source").mkdir(parents=True)
    given = planned(tmp_path / "other", mounts=[mount], linux={"rootfsPropagation": "rslave"})
    assert given.spec["linux"]["rootfsPropagation"] == "rslave"


def test_a_new_uts_namespace_begins_with_the_hosts_name(tmp_path: Path) -> None:
    """As under a kernel that copies it; one that is joined keeps its own."""
    for number, (path, given, shown) in enumerate(
        [("", "", os.uname().nodename), ("", "box", "box"), ("/proc/1234567/ns/uts", "", None)]
    ):
        (tmp_path / str(number)).mkdir()
        namespaces = [{"type": "uts", "path": path}]
        plan = planned(tmp_path / str(number), hostname=given, linux={"namespaces": namespaces})
        assert (plan.spec.get("hostname") or None) == shown


def test_what_is_for_other_systems_is_left_out(tmp_path: Path) -> None:
    """The guest's runtime fails at a `vm` without a kernel."""
    others = {"vm": {}, "windows": {}, "solaris": {"milestone": 5}, "zos": {}, "freebsd": {}}
    assert not others.keys() & planned(tmp_path, **others).spec.keys()


def test_capabilities_are_those_of_the_spec_alone() -> None:
    """The guest's runtime takes other names for them as well, which runc ignores with a warning."""
    given = {"bounding": ["CAP_KILL", "cap_sys_admin", "21", "CAP_FOO"], "ambient": [], "unknown": 5}
    kept = guest_spec.without_hosts({"args": ["sh"], "capabilities": given})["capabilities"]
    assert kept == {"bounding": ["CAP_KILL"], "ambient": []}


def test_the_longest_id_has_a_directory_in_the_share(tmp_path: Path) -> None:
    """255 letters, as many as a name can have; the directory's has some that are random."""
    (tmp_path / "rootfs").mkdir()
    process = {"args": ["sh"], "cwd": "/"}
    config = {"ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    places = {guest_spec.plan(spec.load(os.fspath(tmp_path)), "i" * 255).place for _ in range(2)}
    assert len(places) == 2
    assert all(len(place) <= 255 for place in places)


def test_without_a_uts_namespace_the_hosts_name_shows(tmp_path: Path) -> None:
    """--uts host: a name of the guest's own would be nobody's."""
    plan = planned(tmp_path, linux={"namespaces": [{"type": "mount"}]})
    assert plan.spec["hostname"] == os.uname().nodename
    assert {"type": "uts"} in plan.spec["linux"]["namespaces"]


def test_systemds_hierarchy_makes_the_guests_writable(tmp_path: Path) -> None:
    """podman run --systemd on cgroup v1: a container's systemd has to write in what it finds at /sys/fs/cgroup."""
    groups = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]}
    place = "/sys/fs/cgroup/systemd"
    own = {"destination": place, "type": "bind", "source": place, "options": ["bind", "rprivate"]}
    (seen,) = planned(tmp_path, mounts=[groups, own]).spec["mounts"]
    assert (seen["type"], seen["options"]) == ("cgroup", ["nosuid"])


def test_a_seccomp_listener_that_no_action_needs_is_not_asked_for(tmp_path: Path) -> None:
    """runc asks for one where an action notifies, the guest's runtime where there is a path."""
    archs = ["SCMP_ARCH_X86_64", "SCMP_ARCH_LOONGARCH64"]
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": archs}
    listener = {"listenerPath": "/run/agent.sock", "listenerMetadata": "x"}
    seen = planned(tmp_path, linux={"seccomp": {**profile, **listener}}).spec["linux"]["seccomp"]
    assert seen == {**profile, "architectures": archs[:1]}


def test_zeros_of_an_update_are_no_limits() -> None:
    """`docker update --cpus 2` sends a memory limit of 0, which crun would make the limit."""
    sent = {
        "memory": {"limit": 0, "reservation": 0, "kernel": 0},
        "cpu": {"shares": 0, "quota": 200_000, "period": 100_000, "cpus": "", "mems": "", "idle": 0},
        "blockIO": {"weight": 0},
    }
    assert guest_spec.resources(sent) == {
        "memory": {},
        "cpu": {"quota": 200_000, "period": 100_000, "idle": 0},
    }


def test_devices_access_has_no_letters_but_three() -> None:
    """runc overlooks others, the guest's runtime may not."""
    given = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "access": "rwa"}]
    kept = guest_spec.resources({"devices": given})["devices"]
    assert kept == [given[0], {**given[1], "access": "rw"}]


def test_shares_are_a_weight_in_the_guest() -> None:
    """As runc converts them, whatever the guest's crun would; a weight that is given wins, an idle group has none."""
    assert guest_spec.resources({"cpu": {"shares": 1024}}) == {"cpu": {}, "unified": {"cpu.weight": "100"}}
    given = {"cpu": {"shares": 512}, "unified": {"cpu.weight": "7", "pids.max": "9"}}
    assert guest_spec.resources(given) == {"cpu": {}, "unified": {"cpu.weight": "7", "pids.max": "9"}}
    assert guest_spec.resources({"cpu": {"shares": 512, "idle": 1}}) == {"cpu": {"shares": 512, "idle": 1}}


def test_what_only_means_something_on_the_host_is_left_out(tmp_path: Path) -> None:
    """Processors for an exec, an architecture that no guest has, a limit of processes that is none."""
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_LOONGARCH64"]}
    process = {"args": ["sh"], "cwd": "/", "execCPUAffinity": {"initial": "7"}}
    plan = planned(tmp_path, process=process, linux={"seccomp": profile, "resources": {"pids": {"limit": None}}})
    assert "execCPUAffinity" not in plan.spec["process"]
    assert plan.spec["linux"]["seccomp"]["architectures"] == ["SCMP_ARCH_X86_64"]
    assert plan.spec["linux"]["resources"] == {}


def test_options_of_a_file_system_are_none_of_a_binds(tmp_path: Path) -> None:
    """runc refuses them since 1.3: a kernel would say nothing."""
    (tmp_path / "source").mkdir()
    mount = {"destination": "/v", "type": "bind", "source": "source", "options": ["rbind", "uid=1000"]}
    said = r"^mounts\[0\]\.options: bind mounts cannot have any filesystem-specific options applied: uid=1000$"
    with pytest.raises(SpecError, match=said):
        planned(tmp_path, mounts=[mount], linux={})


def test_real_time_is_refused() -> None:
    """No guarantee of the host's reaches a guest."""
    assert guest_spec.resources({"cpu": {"realtimeRuntime": 0, "realtimePeriod": 1000}}) == {"cpu": {}}
    with pytest.raises(UnsupportedError, match="realtimeRuntime"):
        guest_spec.resources({"cpu": {"realtimeRuntime": 1000}})


def test_where_the_host_mounts_the_guest_mounts(tmp_path: Path) -> None:
    """A destination without symlinks, and a tmpfs's mode: that of what it covers, else its own, else 1777."""
    kinds = {"/a": [], "/b": ["mode=750"], "/c": ["mode=750"], "/d": ["size=1m"]}
    mounts = [{"destination": d, "type": "tmpfs", "source": "tmpfs", "options": o} for d, o in kinds.items()]
    plan = planned(tmp_path, mounts=mounts)
    plan.settle(Made({1: ViewPlace("/real/b", 0o701), 3: ViewPlace("/d", 0o3777)}, "/home/x"))
    assert [(mount["destination"], mount["options"]) for mount in plan.spec["mounts"]] == [
        ("/a", ["mode=1777"]),
        ("/real/b", ["mode=701"]),
        ("/c", ["mode=750"]),
        ("/d", ["size=1m", "mode=3777"]),
    ]
    assert plan.spec["process"]["env"] == ["HOME=/home/x"]


def test_a_source_in_the_containers_own_root_is_a_path_there(tmp_path: Path) -> None:
    """It needs no share; what leads out of the root by a symlink is none."""
    (tmp_path / "elsewhere").mkdir()
    mounts = [
        {"destination": "/x", "type": "bind", "source": "rootfs/later", "options": ["bind"]},
        {"destination": "/y", "type": "bind", "source": "link", "options": ["bind"]},
        {"destination": "/z", "type": "bind", "source": "rootfs-too", "options": ["bind"]},
    ]
    (tmp_path / "link").symlink_to("rootfs/etc")
    plan = planned(tmp_path, mounts=mounts)
    root = f"{names.SHARE}/{names.CONTAINERS}/{plan.place}/rootfs"
    assert [mount["source"] for mount in plan.spec["mounts"]][:2] == [f"{root}/later", f"{root}/etc"]
    assert set(plan.shares) == {"rootfs", "m2"}
    assert [entry.inside for entry in plan.view.entries] == [True, True, False]


def test_a_read_only_root_is_shared_so_unless_devices_are_made_in_it(tmp_path: Path) -> None:
    """The guest's runtime makes them below /dev where nothing is mounted there."""
    dev = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
    root = {"path": "rootfs", "readonly": True}
    for name, mounts, wanted in (("with", [dev], True), ("without", [], False)):
        (tmp_path / name).mkdir()
        plan = planned(tmp_path / name, mounts=mounts, root=root)
        assert plan.shares["rootfs"].read_only is wanted
        assert plan.spec["root"]["readonly"] is True
        assert plan.view.read_only is True


def test_a_mount_onto_the_root_is_the_root_if_it_is_the_first(tmp_path: Path) -> None:
    """A later one would cover those before it."""
    (tmp_path / "first").mkdir()
    (tmp_path / "other").mkdir()
    over = {"destination": "/.", "type": "bind", "source": "/other", "options": ["rbind", "ro"]}
    proc = {"destination": "/proc", "type": "proc", "source": "proc"}
    plan = planned(tmp_path / "first", mounts=[over, proc])
    assert plan.shares["rootfs"].source == "/other"
    assert [mount["destination"] for mount in plan.spec["mounts"]] == ["/proc"]
    with pytest.raises(UnsupportedError, match=r"mounts\[1\]\.destination: a mount onto /"):
        planned(tmp_path / "other", mounts=[proc, over])


def test_a_socket_of_the_host_is_one_of_the_guests(tmp_path: Path) -> None:
    """The guest isn't told where the host has it, nor is it shared."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/socket")
    (tmp_path / "file").touch()
    mounts = [
        {"destination": f"/{name}", "type": "bind", "source": f"{tmp_path}/{name}", "options": ["rbind", "ro"]}
        for name in ("file", "socket")
    ]
    plan = planned(tmp_path, mounts=mounts)
    assert plan.sockets == {"1": f"{tmp_path}/socket"}
    assert set(plan.shares) == {"rootfs", "m0"}
    assert plan.spec["mounts"][1]["source"] == names.host_socket("name", 1)
    assert plan.spec["mounts"][1]["options"] == mounts[1]["options"]
