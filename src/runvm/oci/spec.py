"""config.json read, checked and made into a frozen Spec: `create` and `run` load it, `exec` and `update` share checks.

Strict and bounded: every field of the OCI runtime spec 1.1 is checked for type and range (tables in `schema.py`), then
the rules that span fields, as runc 1.1 and crun 1.8 have them (`rules.py`). An error is one line that names the field
by its JSON path: `config.json: process.args[1]: expected a string, got 5`. Fields unknown to the spec are ignored.
"""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

from runvm.errors import SpecError, UnsupportedError, reason
from runvm.oci import rules, schema
from runvm.oci.shapes import Invalid, JsonObject, shown
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.oci.shapes import Rule

MAX_BYTES = 16 * 1024 * 1024


class Process(NamedTuple):
    """What the host needs of `process`; the guest's runtime reads the rest from the raw object."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    terminal: bool
    console_size: tuple[int, int]
    """Rows and columns; (0, 0) = not set. What is too large for a terminal is cut to what one can have."""


class Mount(NamedTuple):
    """An entry of `mounts`. A bind mount's *source* is absolute: one relative in the file starts at the bundle."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...]

    @property
    def is_bind(self) -> bool:
        """Whether it shows a file or directory of the host; the options decide, never the type (config.md, Mounts)."""
        return is_bind(self.options)


class Hook(NamedTuple):
    """A program to run. *args* includes argv[0], which may differ from *path*. *env* None = inherited, () = empty."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...] | None
    timeout_s: int | None


class Device(NamedTuple):
    """An entry of `linux.devices`; *type* is b, c, u or p; the numbers are 0 where a FIFO has none."""

    path: str
    type: str
    major: int
    minor: int
    mode: int | None
    uid: int | None
    gid: int | None


class IdMapping(NamedTuple):
    """*size* ids from *container_id* up are *host_id* and up outside of the user namespace."""

    container_id: int
    host_id: int
    size: int


class Spec(NamedTuple):
    """A checked config.json. *raw* is the whole of it, without nulls, with absolute mount destinations."""

    raw: JsonObject
    text: bytes
    """The file, as it was read."""
    bundle: str
    oci_version: str
    process: Process
    root_path: str
    root_readonly: bool
    hostname: str
    domainname: str
    mounts: tuple[Mount, ...]
    hooks: dict[str, tuple[Hook, ...]]
    annotations: dict[str, str]
    namespaces: dict[str, str]
    """Type → path of the namespace to join, '' = a new one; a type that isn't there means the host's."""
    cgroups_path: str
    resources: JsonObject
    devices: tuple[Device, ...]
    uid_mappings: tuple[IdMapping, ...]
    gid_mappings: tuple[IdMapping, ...]
    rootfs_propagation: str
    warnings: tuple[str, ...]
    """What runc would have warned of; for the caller to log."""


def load(bundle: str, config_file: str = "") -> Spec:
    """The Spec of *bundle*; *config_file* ('' = config.json) is relative to it.

    Raises: SpecError where the bundle, the file or the root directory is missing, the file is no regular file, larger
    than 16 MiB or not JSON, or a field is bad.
    """
    try:
        # runc's bundle path is the getcwd() after its chdir(): symlinks resolved
        bundle = os.path.realpath(bundle, strict=True)
    except OSError as error:
        raise SpecError(f"bundle {bundle!r}: {reason(error)}") from error
    name = config_file or "config.json"
    path = os.path.join(bundle, name)
    try:
        data = read_bounded(path)
    except FileNotFoundError as error:
        raise SpecError(
            f"JSON specification file {name} not found",
            do="" if name.startswith("/") else f"looked in the bundle {bundle}",
        ) from error
    except OSError as error:
        raise SpecError(f"{path}: {reason(error)}") from error
    return parse(data, bundle=bundle, name=os.path.basename(path))


def parse(data: bytes, *, bundle: str, name: str = "config.json") -> Spec:
    """The Spec that *data*, the text of a config.json, describes; *bundle* is absolute. Raises: SpecError, which calls
    the file *name*."""
    raw = _object(data, name)
    _drop_empty_seccomp(raw)
    _apply(schema.CONFIG, raw, name)
    try:
        return _build(raw, data, bundle=bundle)
    except Invalid as bad:
        raise _spec_error(name, bad) from None


def load_process(path: str) -> JsonObject:
    """The OCI process object in the file *path*, checked as `process` of config.json is (`exec --process`)."""
    try:
        data = read_bounded(path, pipe=True)
    except OSError as error:
        raise SpecError(f"{path}: {reason(error)}") from error
    process = _object(data, path)
    check_process(process, path)
    return process


def check_process(process: JsonObject, name: str) -> None:
    """Raise SpecError, its message beginning with *name*, unless *process* is a complete OCI process object."""
    _apply(schema.PROCESS, process, name)
    try:
        rules.check_process(process)
    except Invalid as bad:
        raise _spec_error(name, bad) from None


def load_resources(data: bytes) -> JsonObject:
    """The `linux.resources` object that *data* holds (`update --resources`). Raises: SpecError."""
    if len(data) > MAX_BYTES:
        raise SpecError(f"resources: larger than {MAX_BYTES} bytes")
    resources = _object(data, "resources")
    check_resources(resources)
    return resources


def check_resources(resources: JsonObject) -> None:
    """Raise SpecError unless *resources* is a good `linux.resources` object, of which each part may be missing."""
    _apply(schema.RESOURCES, resources, "resources")
    try:
        rules.check_cpu(resources.get("cpu", {}), ".cpu")
    except Invalid as bad:
        raise _spec_error("resources", bad) from None


def parse_hooks(raw: JsonObject) -> dict[str, tuple[Hook, ...]]:
    """The hooks in an object shaped as `hooks` of config.json, by kind, as a state file keeps them for `delete`."""
    _apply(schema.HOOKS, raw, "hooks")
    return _hooks(raw)


def host_labels(spec: Spec) -> list[str]:
    """The fields that carry labels of the host's AppArmor or SELinux: the virtual machine confines instead of them."""
    process, linux = spec.raw["process"], spec.raw.get("linux", {})
    found = [f"process.{key}" for key in ("apparmorProfile", "selinuxLabel") if process.get(key)]
    if linux.get("mountLabel"):
        found.append("linux.mountLabel")
    return found


def unsupported(spec: Spec) -> None:
    """Raise UnsupportedError, naming the field, for what runc or the OCI spec has and a virtual machine can't give."""
    linux: JsonObject = spec.raw.get("linux", {})
    if linux.get("intelRdt"):
        raise UnsupportedError("linux.intelRdt: cache and bandwidth classes are the host's, a virtual machine has none")
    if linux.get("netDevices"):
        raise UnsupportedError(
            "linux.netDevices: a network interface of the host can't be moved into a virtual machine",
            do="put it into the network namespace that the container joins",
        )
    if linux.get("memoryPolicy") is not None:
        raise UnsupportedError("linux.memoryPolicy: memory nodes are the host's, a virtual machine has one")
    seccomp: JsonObject = linux.get("seccomp", {})
    actions = [("defaultAction", seccomp.get("defaultAction"))]
    actions += [(f"syscalls[{i}].action", call["action"]) for i, call in enumerate(seccomp.get("syscalls", ()))]
    for field, action in actions:
        if action == "SCMP_ACT_NOTIFY":
            raise UnsupportedError(f"linux.seccomp.{field}: SCMP_ACT_NOTIFY needs a listener on the host's kernel")
    for kind in ("cgroup", "mount", "time"):
        if spec.namespaces.get(kind):
            raise UnsupportedError(
                f"linux.namespaces: a {kind} namespace can't be joined by path: it would have to be in the same guest"
            )
    for index, mount in enumerate(spec.raw.get("mounts", ())):
        mapped = [key for key in ("uidMappings", "gidMappings") if mount.get(key)]
        mapped += ["options" for option in mount.get("options", ()) if option.partition("=")[0] in ("idmap", "ridmap")]
        if mapped:
            raise UnsupportedError(
                f"mounts[{index}].{mapped[0]}: id-mapped mounts aren't possible on files that the host shares"
            )


def is_bind(options: tuple[str, ...] | list[str]) -> bool:
    """Whether mount *options* ask for a bind mount."""
    return "bind" in options or "rbind" in options


def read_bounded(path: str, *, pipe: bool = False) -> bytes:
    """The bytes of the regular file *path*, at most 16 MiB. Never waits, whatever *path* is, but for what is written
    into a *pipe* where that is allowed. Raises: OSError."""
    # Without O_NONBLOCK the open of a FIFO would wait for a writer
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if pipe and stat.S_ISFIFO(status.st_mode):
            from runvm.oci import pipes

            return pipes.read_to_end(fd, MAX_BYTES)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
        chunks, size = [], 0
        while chunk := os.read(fd, 1 << 20):
            size += len(chunk)
            if size > MAX_BYTES:
                raise OSError(0, f"larger than {MAX_BYTES} bytes")
            chunks.append(chunk)
    finally:
        os.close(fd)
    return b"".join(chunks)


# --- reading


def _object(data: bytes, name: str) -> JsonObject:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        value = json.loads(data.decode(), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise SpecError(f"{name}: not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise SpecError(f"{name}: not valid JSON: nested too deep") from error
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise SpecError(f"{name}: not valid JSON: {error}") from error
    if type(value) is not dict:
        raise SpecError(f"{name}: expected an object, got {shown(value)}")
    return value


def _apply(rule: Rule, value: JsonObject, name: str) -> None:
    try:
        rule(value)
    except Invalid as bad:
        raise _spec_error(name, bad) from None


def _spec_error(name: str, bad: Invalid) -> SpecError:
    return SpecError(": ".join(part for part in (name, bad.path.lstrip("."), bad.message) if part))


def _drop_empty_seccomp(raw: JsonObject) -> None:
    """No default action and no rules means no seccomp, as in runc; crun would fail on it."""
    linux = raw.get("linux")
    if type(linux) is not dict:
        return
    seccomp = linux.get("seccomp")
    if type(seccomp) is dict and not seccomp.get("defaultAction") and not seccomp.get("syscalls"):
        del linux["seccomp"]


def _build(raw: JsonObject, text: bytes, *, bundle: str) -> Spec:
    rules.check_version(raw["ociVersion"])
    rules.check_process(raw["process"], ".process")
    linux: JsonObject = raw.get("linux", {})
    namespaces = rules.namespaces_of(linux)
    rules.check_namespaced(raw, namespaces)
    rules.check_mappings(linux, namespaces)
    rules.check_devices(linux)
    rules.check_cpu(linux.get("resources", {}).get("cpu", {}), ".linux.resources.cpu")
    rules.check_seccomp(linux.get("seccomp", {}))
    rules.check_sysctl(linux.get("sysctl", {}), namespaces)

    warnings = rules.capability_warnings(raw["process"])
    mounts = _mounts(raw.get("mounts", []), bundle, warnings)
    return Spec(
        raw=raw,
        text=text,
        bundle=bundle,
        oci_version=raw["ociVersion"],
        process=_process(raw["process"]),
        root_path=_root(raw["root"]["path"], bundle),
        root_readonly=raw["root"].get("readonly", False),
        hostname=raw.get("hostname", ""),
        domainname=raw.get("domainname", ""),
        mounts=mounts,
        hooks=_hooks(raw.get("hooks", {})),
        annotations=raw.get("annotations", {}),
        namespaces=namespaces,
        cgroups_path=linux.get("cgroupsPath", ""),
        resources=linux.get("resources", {}),
        devices=tuple(map(_device, linux.get("devices", ()))),
        uid_mappings=_mappings(linux.get("uidMappings", ())),
        gid_mappings=_mappings(linux.get("gidMappings", ())),
        rootfs_propagation=linux.get("rootfsPropagation", ""),
        warnings=tuple(warnings),
    )


def _process(raw: JsonObject) -> Process:
    user, size = raw.get("user", {}), raw.get("consoleSize", {})
    return Process(
        args=tuple(raw["args"]),
        env=tuple(raw.get("env", ())),
        cwd=raw["cwd"],
        uid=user.get("uid", 0),
        gid=user.get("gid", 0),
        terminal=raw.get("terminal", False),
        # struct winsize has 16 bits for each
        console_size=(min(size.get("height", 0), 0xFFFF), min(size.get("width", 0), 0xFFFF)),
    )


def _device(raw: JsonObject) -> Device:
    return Device(
        path=raw["path"],
        type=raw["type"],
        major=raw.get("major", 0),
        minor=raw.get("minor", 0),
        mode=raw.get("fileMode"),
        uid=raw.get("uid"),
        gid=raw.get("gid"),
    )


def _hooks(raw: JsonObject) -> dict[str, tuple[Hook, ...]]:
    return {
        kind: tuple(
            Hook(
                path=hook["path"],
                args=tuple(hook.get("args", ())) or (hook["path"],),
                env=tuple(hook["env"]) if "env" in hook else None,
                timeout_s=hook.get("timeout"),
            )
            for hook in raw[kind]
        )
        for kind in schema.HOOK_KINDS
        if raw.get(kind)
    }


def _mappings(raw: list[JsonObject] | tuple[()]) -> tuple[IdMapping, ...]:
    return tuple(IdMapping(entry["containerID"], entry["hostID"], entry["size"]) for entry in raw)


def _root(path: str, bundle: str) -> str:
    joined = os.path.join(bundle, path)
    try:
        resolved = os.path.realpath(joined, strict=True)
    except OSError as error:
        raise Invalid(f"{shown(joined)}: {reason(error)}", ".root.path") from error
    if not os.path.isdir(resolved):
        raise Invalid(f"{shown(joined)}: not a directory", ".root.path")
    return resolved


def _mounts(raw: list[JsonObject], bundle: str, warnings: list[str]) -> tuple[Mount, ...]:
    mounts = []
    for index, entry in enumerate(raw):
        at = f".mounts[{index}]"
        options = tuple(entry.get("options", ()))
        kind, source = entry.get("type", ""), entry.get("source", "")
        if not entry["destination"].startswith("/"):
            warnings.append(f"{at[1:]}: mount destination {shown(entry['destination'])} is not absolute")
        # as runc, which cleans it: a file's with a slash at its end would be a directory's
        entry["destination"] = os.path.normpath("/" + entry["destination"].lstrip("/"))
        if is_bind(options):
            if not source and "remount" not in options:
                raise Invalid("must be set for a bind mount", f"{at}.source")
            source = source if source.startswith("/") else os.path.normpath(os.path.join(bundle, source))
        elif kind == "bind":
            # Both runtimes would fail with mount(2)'s "no such device"
            raise Invalid('a mount of type "bind" needs "bind" or "rbind"', f"{at}.options")
        elif not kind and "remount" not in options:
            raise Invalid('must be set unless the options have "bind" or "rbind"', f"{at}.type")
        mounts.append(Mount(entry["destination"], kind, source, options))
    return tuple(mounts)
