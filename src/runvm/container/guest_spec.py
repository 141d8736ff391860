"""The guest's config.json, made from the caller's: a pure function, apart from looking at what is mounted.

crun in the guest carries the rest of the OCI spec out. What changes: sources of files become places in the share,
namespaces of the host become the guest's, and what only means something on the host (labels, its devices, its cgroup)
is left out.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from runvm.cgroup.limits import weight_of
from runvm.container import environment, mount_options, shm
from runvm.container.host_view import Made, View, ViewEntry
from runvm.errors import UnsupportedError
from runvm.linux import limits, process, syscalls
from runvm.log import log
from runvm.oci.schema import CAPABILITIES, CAPABILITY_SETS
from runvm.protocol import names
from runvm.records import NamedTuple
from runvm.shares.tree import ROOT, Share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runvm.container.hook_view import HookMount
    from runvm.oci.spec import IdMapping, Mount, Spec

_SHARE = f"{names.SHARE}/{names.CONTAINERS}"
"""Where the guest has the containers' part of the share (agent.init, shares.tree)."""
_NOTIFY_SOCKET = "/run/notify/notify.sock"
"""Where the process finds the caller's $NOTIFY_SOCKET, as under runc."""
_OWN = ("/proc", "/sys")
"""Trees of the kernel: a bind of one shows the guest's own, never the host's."""
_CGROUPS = "/sys/fs/cgroup"
_STATIC_DEVICES = {
    ("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 1, 11), ("c", 5, 0), ("c", 5, 1), ("c", 5, 2),  # noqa: E501
    ("c", 10, 200), ("c", 10, 229), ("c", 10, 237),
}  # fmt: skip
"""Devices with the same numbers on every Linux (kernel's devices.txt), which the guest has itself: memory,
terminals, tun, fuse, loop."""
_LOOP = ("b", 7)
_OTHER_SYSTEMS = frozenset(("freebsd", "solaris", "vm", "windows", "zos"))
"""What no Linux needs of a config.json; the guest's runtime fails at some where a field is missing."""
_PLACE_MAX = 200
"""Letters of an id in the name of its directory in the share: the id alone may have as many as a name can."""
_OVERLAY = {
    "lowerdir", "upperdir", "workdir", "redirect_dir", "index", "metacopy", "nfs_export", "xino", "userxattr", "volatile",  # noqa: E501
}  # fmt: skip
"""Options of the file system itself; the others are mount flags (kernel's overlayfs.rst)."""
# resources that cgroup v2, which the guest has, doesn't know, or that mean the host's devices and processors
_NOT_IN_GUEST = {
    "memory": ("kernel", "kernelTCP", "swappiness", "disableOOMKiller", "useHierarchy", "checkBeforeUpdate"),
    "cpu": ("mems", "realtimeRuntime", "realtimePeriod"),
}

_OTHERS = frozenset(("SCMP_ARCH_LOONGARCH64",))
"""Architectures that no guest has, and that libseccomp fails at before 2.6."""
_UNSET = {"memory": ("limit", "reservation", "swap"), "cpu": ("shares", "quota", "period", "cpus")}
"""Where 0 or '' is no value to runc, and `docker update` sends it for what isn't asked for; crun takes it literally."""


class GuestPlan(NamedTuple):
    """What `create` sends to the supervisor: the guest's spec, the directory of the share that it names, what is shared
    there, what was left out (for the log), the $NOTIFY_SOCKET on the host or '', the mounted sockets of the host by
    number, and for the shim what the host is to see, without the directory where."""

    spec: dict[str, Any]
    place: str
    shares: dict[str, Share]
    notes: list[str]
    notify: str
    sockets: dict[str, str]
    view: View

    def settle(self, made: Made) -> None:
        """Have the guest mount where the host has, whatever symlinks say there, and give each tmpfs the mode of the
        directory that it covers, as runc does whatever its options say; complete the environment."""
        process_object = self.spec["process"]
        process_object["env"] = environment.complete(process_object.get("env", ()), made.home)
        for number, mount in enumerate(self.spec["mounts"]):
            place = made.places.get(number)
            if place is not None:
                mount["destination"] = place.path
            if mount["type"] == "tmpfs":
                mount["options"] = _with_mode(mount["options"], place.mode if place is not None else -1)

    def add(self, found: Sequence[HookMount], at: str, number: int) -> None:
        """Have the guest mount what hooks have mounted in the root that the shim has at *at*, numbered from *number*
        on. What they mounted in its own proc and sysfs is left out."""
        own = tuple(f"{mount['destination']}/" for mount in self.spec["mounts"] if mount["type"] in ("proc", "sysfs"))
        for mount in found:
            if mount.path.startswith(own):
                log.info(f"a hook's mount at {mount.path} is left out: the virtual machine's own kernel has that place")
                continue
            name = f"m{number}"
            self.shares[name] = Share(at + mount.path, True, "ro" in mount.options)
            source = f"{_SHARE}/{self.place}/{name}"
            options = ["rbind", *mount.options]
            self.spec["mounts"].append(
                {"destination": mount.path, "type": "bind", "source": source, "options": options}
            )
            number += 1


def _with_mode(options: list[str], covered: int) -> list[str]:
    """A tmpfs's options with the mode that runc would give it, *covered* being that of the directory there (-1: there
    was none)."""
    if covered < 0 and any(option.startswith("mode=") for option in options):
        return options
    mode = covered if covered >= 0 else 0o1777
    return [*(option for option in options if not option.startswith("mode=")), f"mode={mode:o}"]


class _Root(NamedTuple):
    """A container's root on the host, whether it is read-only, and the mounts in it. *private*: what the host mounts
    later comes neither to it nor to them."""

    path: str
    read_only: bool
    mounts: tuple[tuple[int, Mount], ...]
    private: bool


def plan(spec: Spec, cid: str) -> GuestPlan:
    """Rewrite *spec* for the guest. Raises UnsupportedError, naming what a VM can't have."""
    raw = {key: value for key, value in spec.raw.items() if key not in _OTHER_SYSTEMS}
    notes: list[str] = []
    root = _root(spec)
    shares = {ROOT: Share(root.path, True, root.read_only and not _makes_devices(spec), private=root.private)}
    # a new name each time: the guest remembers for a second what the old container of this id had there
    place = f"{cid[:_PLACE_MAX]}.{os.urandom(8).hex()}"
    raw["root"] = {**raw["root"], "path": f"{_SHARE}/{place}/{ROOT}", "readonly": root.read_only}
    raw["mounts"], entries = _mounts(root, place, shares)
    sockets = _sockets(cid, place, raw["mounts"], shares)
    owner = (_hosts_id(spec.uid_mappings), _hosts_id(spec.gid_mappings))
    raw.pop("hooks", None)
    start_hooks = spec.raw.get("hooks", {}).get("startContainer")
    if start_hooks:
        raw["hooks"] = {"startContainer": start_hooks}
    raw["annotations"] = {
        key: value for key, value in spec.annotations.items() if key.startswith("run.oci.") and key != "run.oci.handler"
    }
    raw["process"] = with_limits(without_hosts(raw["process"]))
    linux = dict(raw.get("linux", {}))
    if "maskedPaths" in linux:
        linux["maskedPaths"] = list(dict.fromkeys(linux["maskedPaths"]))  # the guest's runtime fails at the second
    for key in ("mountLabel", "intelRdt"):
        linux.pop(key, None)
    if seccomp := linux.get("seccomp"):
        # a listener that no action needs (oci.spec.unsupported()) isn't asked for
        linux["seccomp"] = {key: value for key, value in seccomp.items() if not key.startswith("listener")}
        if "architectures" in seccomp:
            linux["seccomp"]["architectures"] = [name for name in seccomp["architectures"] if name not in _OTHERS]
    linux["cgroupsPath"] = f"/{cid}"
    linux["namespaces"] = [{"type": kind} for kind in spec.namespaces if not _is_hosts(spec, kind)]
    kinds = {namespace["type"] for namespace in linux["namespaces"]}
    if "cgroup" not in kinds:
        # on cgroup v1 engines ask for none, and runc shows the container its own groups by binds: here by a namespace
        linux["namespaces"].append({"type": "cgroup"})
    if "uts" not in kinds:
        linux["namespaces"].append({"type": "uts"})
    if "uts" not in kinds or spec.namespaces["uts"] == "" and not spec.hostname:
        # that of the host's namespace: who shares it expects that at least, and a new one begins with it
        raw["hostname"] = os.uname().nodename
    if spec.rootfs_propagation in ("", "rprivate") and any(
        option in ("shared", "rshared", "unbindable", "runbindable")
        for mount in spec.mounts
        for option in mount.options
    ):
        # crun sets the root's last: what is mounted below keeps its own only where that isn't recursive
        linux["rootfsPropagation"] = "private"
    linux["resources"] = resources(spec.resources)
    linux["devices"] = _devices(spec, notes)
    raw["linux"] = linux
    notify = _notify(spec, cid, raw, entries)
    view = View(root.path, "", tuple(entries), root.read_only, spec.process.cwd, owner, spec.process.uid)
    return GuestPlan(raw, place, shares, notes, notify, sockets, view)


def _root(spec: Spec) -> _Root:
    """The root, which a bind onto / replaces if it comes before all other mounts. Raises UnsupportedError for a later
    one, which would cover those before it."""
    mounts = tuple(enumerate(spec.mounts))
    path, read_only = spec.root_path, spec.root_readonly
    if mounts and _onto_root(mounts[0][1]):
        first = mounts[0][1]
        path, read_only = first.source, read_only or mount_options.read_only(first.options)
        mounts = mounts[1:]
    for number, mount in mounts:
        if _onto_root(mount):
            raise UnsupportedError(
                f"mounts[{number}].destination: a mount onto / covers those before it, /proc among them",
                do="name it first in mounts",
            )
    return _Root(path, read_only, mounts, spec.rootfs_propagation in mount_options.PRIVATE)


def _onto_root(mount: Mount) -> bool:
    return mount.is_bind and os.path.normpath(f"/{mount.destination}").lstrip("/") == ""


def _makes_devices(spec: Spec) -> bool:
    """Whether the guest's runtime makes nodes in the root itself, which it then must be able to write to."""
    own = any(mount.destination.rstrip("/") == "/dev" for mount in spec.mounts)
    return not own or any(not device.path.startswith("/dev/") for device in spec.devices)


def _hosts_id(mappings: Sequence[IdMapping]) -> int:
    """The host's id of the container's root."""
    return next((mapping.host_id - mapping.container_id for mapping in mappings if mapping.container_id == 0), 0)


def check_propagation(spec: Spec) -> None:
    """Raise UnsupportedError for a mount of a Kubernetes pod that is Bidirectional: a pod relies on the host's seeing
    what it mounts, unlike who asks for rshared by hand."""
    for number, mount in enumerate(spec.mounts):
        if mount.is_bind:
            mount_options.check_pods_bind(mount.options, f"mounts[{number}].options")


def without_hosts(process_object: dict[str, Any]) -> dict[str, Any]:
    """A process object without what only means something on the host: AppArmor and SELinux labels, in whose place the
    virtual machine confines, and the processors that an `exec` is to run on. Nor has it capabilities that
    rules.capability_warnings() says are ignored: the guest's runtime takes cap_kill, too, and 5."""
    hosts = ("apparmorProfile", "selinuxLabel", "execCPUAffinity")
    kept = {key: value for key, value in process_object.items() if key not in hosts}
    if given := kept.get("capabilities"):
        kept["capabilities"] = {
            kind: [name for name in given[kind] if name in CAPABILITIES] for kind in CAPABILITY_SETS if kind in given
        }
    return kept


def note_affinity(process_object: dict[str, Any]) -> None:
    """Tell the log of processors that are left out."""
    if any((process_object.get("execCPUAffinity") or {}).values()):
        log.info("process.execCPUAffinity is left out: the CPUs of the host aren't those of the virtual machine")


def with_limits(process_object: dict[str, Any]) -> dict[str, Any]:
    """A process object with a limit of each kind: what it doesn't set is the caller's own, as in runc, where the
    process inherits it (an engine's service often has a million open files)."""
    given = process_object.get("rlimits", [])
    named = {limit["type"] for limit in given}
    inherited = [
        {"type": kind, "soft": soft, "hard": hard} for kind, (soft, hard) in limits.own().items() if kind not in named
    ]
    return {**process_object, "rlimits": [*given, *inherited]}


def resources(given: dict[str, Any]) -> dict[str, Any]:
    """The part of an OCI resources object that the guest enforces; the rest holds around the VMM, on the host.

    `cpus` are the host's: the supervisor says which of the guest's these are (sandbox.growth).
    Raises UnsupportedError for real-time CPU time.
    """
    if given.get("cpu", {}).get("realtimeRuntime"):
        raise UnsupportedError(
            "linux.resources.cpu.realtimeRuntime: a virtual machine's processors are threads of the host, without"
            " real-time guarantees",
            do="leave --cpu-rt-runtime out",
        )
    kept = {
        key: value
        for key, value in given.items()
        if key in ("devices", "memory", "cpu", "pids", "hugepageLimits", "unified")
    }
    if rules := kept.get("devices"):
        kept["devices"] = [
            {**rule, "access": "".join(letter for letter in "rwm" if letter in rule["access"])} for rule in rules
        ]
    if "limit" not in kept.get("pids", {}):
        kept.pop("pids", None)  # none is no limit to runc, and an error to crun
    for group, keys in _NOT_IN_GUEST.items():
        if group in kept:
            kept[group] = {
                key: value
                for key, value in kept[group].items()
                if key not in keys and (value or key not in _UNSET[group])
            }
    if kept.get("cpu", {}).get("shares") and not kept["cpu"].get("idle"):
        _convert_shares(kept)
    return kept


def _convert_shares(kept: dict[str, Any]) -> None:
    """Name the weight instead of the shares: older versions of crun convert in another way than runc, and all of them
    let a weight in `unified` win."""
    shares = kept["cpu"]["shares"]
    kept["cpu"] = {key: value for key, value in kept["cpu"].items() if key != "shares"}
    kept["unified"] = {"cpu.weight": str(weight_of(shares)), **kept.get("unified", {})}


def _mounts(root: _Root, place: str, shares: dict[str, Share]) -> tuple[list[dict[str, Any]], list[ViewEntry]]:
    """The guest's mounts, and for each what the host is to see of it. What they need is put in *shares*."""
    mounts: list[dict[str, Any]] = []
    seen: list[ViewEntry] = []
    # Podman's --systemd on cgroup v1: systemd's own hierarchy, writable below the others that aren't. The guest has one
    hierarchies = [mount for _, mount in root.mounts if mount.is_bind and _is_hierarchy(mount)]
    writable = any(not mount_options.read_only(mount.options) for mount in hierarchies)
    for number, mount in root.mounts:
        if mount in hierarchies:
            continue
        entry: dict[str, Any] = {
            "destination": mount.destination,
            "type": mount.type,
            "source": mount.source,
            "options": mount_options.for_guest(mount.options, f"mounts[{number}].options", bind=mount.is_bind),
        }
        if mount.is_bind:
            mount_options.check_bind(mount.options, f"mounts[{number}].options")
        shown = ViewEntry(mount.destination, mount.type, "", copied="tmpcopyup" in mount.options)
        if mount.is_bind and not _kernels_own(mount.source):
            entry["options"] += mount_options.of_source(mount.source, mount.options)
            shown = _bind(root, mount)
            if own := shm.of_engine(mount):
                entry.update(type=names.SHM, source=own.name, options=[*entry["options"], *own.options])
                shown = ViewEntry(mount.destination, "tmpfs", "")
            elif shown.inside:
                entry["source"] = f"{_SHARE}/{place}/{ROOT}{shown.source[len(root.path) :]}"
            else:
                name = f"m{number}"
                shares[name] = Share(
                    mount.source,
                    shown.recursive,
                    shown.read_only,
                    submounts_too=shown.submounts_too,
                    private=root.private or mount_options.private(mount.options),
                )
                entry["source"] = f"{_SHARE}/{place}/{name}"
        elif mount.is_bind:
            shown = shown._replace(directory=os.path.isdir(mount.source), of_proc=_is_procfs(mount.source))
        elif mount.type == "overlay":
            # its layers are directories of the host: Podman's volumes with :O, its mounts of images
            name = f"m{number}"
            layers = [option for option in mount.options if option.partition("=")[0] in _OVERLAY]
            shares[name] = Share(mount.source, False, mount_options.read_only(mount.options), ",".join(layers))
            options = ["bind", *(option for option in mount.options if option not in layers)]
            entry.update(type="bind", source=f"{_SHARE}/{place}/{name}", options=options)
        elif mount.type == "cgroup" and writable:
            entry["options"] = [option for option in entry["options"] if option != "ro"]
        mounts.append(entry)
        seen.append(shown)
    return mounts, seen


def _bind(root: _Root, mount: Mount) -> ViewEntry:
    """A bind as the host sees it. One of something in the container's own root has a path in there, by which both the
    host and the guest see what earlier mounts have put there."""
    source, inside = mount.source, False
    real, top = os.path.realpath(source), os.path.realpath(root.path)
    if top != "/" and f"{real}/".startswith(f"{top}/"):
        source, inside = root.path + real[len(top) :], True
    return ViewEntry(
        mount.destination,
        mount.type,
        source,
        "rbind" in mount.options,
        mount_options.read_only(mount.options),
        mount_options.recursively_read_only(mount.options),
        inside,
        of_proc=_is_procfs(mount.source),
    )


def _sockets(cid: str, place: str, mounts: list[dict[str, Any]], shares: dict[str, Share]) -> dict[str, str]:
    """The sockets of the host among the *shares*, by number, which aren't shared then: their server is in another
    kernel. In the guest's *mounts* a socket of the guest's own comes to the place of each (agent.host_sockets)."""
    found = {name: share.source for name, share in shares.items() if name != ROOT and _is_socket(share.source)}
    for name in found:
        del shares[name]
    for mount in mounts:
        name = mount["source"].rpartition("/")[2]
        if mount["source"] == f"{_SHARE}/{place}/{name}" and name in found:
            mount["source"] = names.host_socket(cid, int(name[1:]))
    return {name[1:]: source for name, source in found.items()}


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # whoever needs it says so
        return False


def _notify(spec: Spec, cid: str, raw: dict[str, Any], seen: list[ViewEntry]) -> str:
    """The host's socket to which the process's $NOTIFY_SOCKET leads: the one that is bound there, as by Podman's
    --sdnotify=container, or else the caller's own, as under runc; '' without one. In the guest's mounts one of the
    guest's comes to its place (agent.notify)."""
    path = next((entry[14:] for entry in spec.process.env if entry.startswith("NOTIFY_SOCKET=")), "")
    source = ""
    for mount in spec.mounts:
        if path.startswith("/") and mount.is_bind and f"{path}/".startswith(f"{mount.destination}/"):
            source = mount.source + path[len(mount.destination) :]
    own = not path
    if own:
        path, source = _NOTIFY_SOCKET, os.environ.get("NOTIFY_SOCKET", "")
    if not source.startswith("/") or not _is_socket(source):
        return ""
    if own:
        raw["process"]["env"] = [*spec.process.env, f"NOTIFY_SOCKET={path}"]
    raw["mounts"].append({"destination": path, "type": "bind", "source": names.notify_socket(cid), "options": ["bind"]})
    seen.append(ViewEntry(path, "bind", "", directory=False))
    return source


def _is_hierarchy(mount: Mount) -> bool:
    return mount.source.startswith(f"{_CGROUPS}/") and mount.destination == mount.source


def _kernels_own(source: str) -> bool:
    return any(source == tree or source.startswith(f"{tree}/") for tree in _OWN)


def _is_hosts(spec: Spec, kind: str) -> bool:
    """Whether a namespace path is just another name of the host's own namespace, as Docker's --network host gives
    it."""
    path = spec.namespaces.get(kind, "")
    return bool(path) and process.same_namespace(path, f"/proc/self/ns/{process.namespace_name(kind)}")


def _is_procfs(path: str) -> bool:
    try:
        return syscalls.is_procfs(path)
    except OSError:  # whoever needs it says so
        return False


def _devices(spec: Spec, notes: list[str]) -> list[dict[str, Any]]:
    """The devices to be made in the guest. Raises UnsupportedError for one of the host's that was asked for by name."""
    every = any(
        rule.get("allow") and not rule.get("major") and rule.get("type", "a") in ("a", "")
        for rule in spec.resources.get("devices", [])
    )
    kept = []
    for device, raw in zip(spec.devices, spec.raw.get("linux", {}).get("devices", []), strict=True):
        numbers = ("c" if device.type == "u" else device.type, device.major, device.minor)
        if device.type == "p" or numbers in _STATIC_DEVICES or numbers[:2] == _LOOP:
            kept.append(raw)
        elif every:
            notes.append(device.path)  # --privileged lists all of the host's: all of the guest's is what it gets
        else:
            raise UnsupportedError(
                f"device {device.path} ({device.type} {device.major}:{device.minor}): a device of the host can't be handed to a virtual machine"  # noqa: E501
            )
    return kept
