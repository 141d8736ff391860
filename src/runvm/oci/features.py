"""What `runvm features` prints (OCI runtime spec, features.md): what the guest's crun and kernel give, not the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import runvm
from runvm.oci import OCI_VERSION, schema

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.oci.shapes import JsonObject

# Without `idmap`, which files shared with the host can't have, and nosymfollow: see container.mount_options
_MOUNT_OPTIONS = (
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
)


def features(config: Config, *, hypervisor: str, checkpoint: bool) -> JsonObject:
    """The features structure; *hypervisor* and the accelerator of *config* stand behind it."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(schema.HOOK_KINDS),
        "mountOptions": list(_MOUNT_OPTIONS),
        "linux": {
            "namespaces": list(schema.NAMESPACES),
            "capabilities": list(schema.CAPABILITIES),
            # The limits of a container hold in the guest, whose cgroups are of version 2 and no systemd's
            "cgroup": {"v1": False, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                # Not NOTIFY: its listener is a process of the host
                "actions": [action for action in schema.SECCOMP_ACTIONS if action != "SCMP_ACT_NOTIFY"],
                "operators": list(schema.SECCOMP_OPERATORS),
                "archs": list(schema.SECCOMP_ARCHS),
                "knownFlags": list(schema.SECCOMP_FLAGS),
                # WAIT_KILLABLE_RECV is for filters with a listener
                "supportedFlags": [flag for flag in schema.SECCOMP_FLAGS if not flag.endswith("WAIT_KILLABLE_RECV")],
            },
            # Their labels are taken and do nothing: see spec.host_labels
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        # A name with a dot at its end stands for all that begin so: config.load(), guest_spec.plan(), cgroup.scope
        "potentiallyUnsafeConfigAnnotations": ["io.runvm.", "run.oci.", "org.systemd.property."],
        "annotations": {
            "io.runvm.version": runvm.__version__,
            "io.runvm.hypervisor": hypervisor,
            "io.runvm.accelerator": config.accelerator,
            "org.opencontainers.runc.checkpoint.enabled": "true" if checkpoint else "false",
        },
    }
