"""`runvm features` says what the guest gives, in the shape of the spec."""

from collections.abc import Callable
from typing import Any

import pytest

from runvm.config import Config
from runvm.oci import spec
from runvm.oci.features import features


def test_the_shape_is_that_of_the_spec_1_2() -> None:
    found = features(Config(), hypervisor="qemu", checkpoint=False)
    lists = {"hooks", "mountOptions", "potentiallyUnsafeConfigAnnotations"}
    assert set(found) == {"ociVersionMin", "ociVersionMax", "linux", "annotations", *lists}
    linux = found["linux"]
    modules = {"seccomp", "apparmor", "selinux", "intelRdt", "mountExtensions"}
    assert set(linux) == {"namespaces", "capabilities", "cgroup", *modules}
    assert {"io.runvm.", "run.oci."} <= set(found["potentiallyUnsafeConfigAnnotations"])
    assert linux["mountExtensions"] == {"idmap": {"enabled": False}}
    assert found["mountOptions"] == sorted(found["mountOptions"])
    assert found["annotations"]["io.runvm.hypervisor"] == "qemu"


def test_what_it_says_is_what_config_json_may_have(
    config: dict[str, Any], load: Callable[[dict[str, Any]], spec.Spec]
) -> None:
    """features.md: "the runtime MUST recognize the elements"."""
    found = features(Config(), hypervisor="qemu", checkpoint=False)
    linux = found["linux"]
    config["hooks"] = {kind: [{"path": "/bin/true"}] for kind in found["hooks"]}
    config["process"]["capabilities"]["bounding"] = linux["capabilities"]
    for kind in ("uidMappings", "gidMappings"):
        config["linux"][kind] = [{"containerID": 0, "hostID": 0, "size": 1}]
    arg = {"index": 0, "value": 1}
    config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": linux["seccomp"]["archs"],
        "flags": linux["seccomp"]["knownFlags"],
        "syscalls": [
            {"names": ["read"], "action": action, "args": [{**arg, "op": op}]}
            for action in linux["seccomp"]["actions"]
            for op in linux["seccomp"]["operators"]
        ],
    }
    for version in (found["ociVersionMin"], found["ociVersionMax"]):
        config["ociVersion"] = version
        config["linux"]["namespaces"] = [{"type": kind} for kind in linux["namespaces"]]
        loaded = load(config)
        spec.unsupported(loaded)
        assert loaded.warnings == ()


@pytest.mark.parametrize("option", ["idmap", "ridmap"])
def test_what_files_of_the_host_cannot_have_is_not_said(option: str) -> None:
    assert option not in features(Config(), hypervisor="qemu", checkpoint=False)["mountOptions"]
