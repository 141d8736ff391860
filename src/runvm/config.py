"""Settings: annotation > file > default, in one frozen Config; every command loads it, `runvm config` explains it.

The file is flat TOML, a key for each field of Config, so that a message, an annotation and a line of the file name a
setting alike. tomllib, whose import takes longer than all else that `runvm state` does, is imported only for a file
that has more than plain lines.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from runvm.errors import ConfigError
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Value = str | int | bool

DEFAULT_FILE = "/etc/runvm/config.toml"
FILE_VARIABLE = "RUNVM_CONFIG"
ANNOTATION_PREFIX = "io.runvm."
# What a container's author may choose: sizes within the bounds below, never paths or anything of the host's
CONTAINER_KEYS = ("vcpus", "memory_mib", "template", "arch")
WARM, WARM_VOLUMES = f"{ANNOTATION_PREFIX}warm", f"{ANNOTATION_PREFIX}warm-volumes"
"""Annotations that are no settings: container.warm reads them."""


class Config(NamedTuple):
    """All settings of one command; the table SETTINGS holds what each means and may be."""

    hypervisor: str = "auto"
    accelerator: str = "auto"
    arch: str = "auto"
    qemu: str = ""
    virtiofsd: str = ""
    image: str = ""
    kernel: str = ""
    initramfs: str = ""
    modules: str = ""
    kernel_args: str = ""
    guest_suite: str = ""
    guest_kernel: str = ""
    guest_crun: str = ""
    guest_mirror: str = ""
    guest_security_mirror: str = ""
    guest_keyring: str = ""
    vcpus: int = 0
    memory_mib: int = 0
    default_memory_mib: int = 1024
    fixed_memory_mib: int = 2048
    max_memory_mib: int = 0
    overhead_mib: int = 128
    state_dir: str = "/run/runvm"
    data_dir: str = "/var/lib/runvm"
    template: bool = True
    host_network: str = "refuse"
    container_hypervisors: str = ""
    boot_timeout_s: int = 60
    debug_console: bool = False
    log_file: str = ""
    log_format: str = "text"
    log_level: str = "info"


class Setting(NamedTuple):
    """What a key means and which values it takes: a word of *choices*, a number *low* to *high* (and 0 if *zero*), an
    absolute *path*, or one or a plain name if *named*."""

    meaning: str
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    zero: bool = False
    path: bool = False
    named: bool = False


_MAX_MIB = 16 * 1024 * 1024

SETTINGS: dict[str, Setting] = {
    "hypervisor": Setting(
        "the driver that runs the virtual machines: auto (QEMU where KVM works, else User Mode Linux where a kernel for"
        " it is there and boots, else QEMU), qemu, uml (User Mode Linux), or one that a package adds"
    ),
    "accelerator": Setting(
        "kvm, tcg (emulation), or auto: KVM where a guest really boots with it, else emulation",
        choices=("auto", "kvm", "tcg"),
    ),
    "arch": Setting(
        "the processor architecture of containers: auto (the one that a container's programs are for), or always that",
        choices=("auto", "amd64", "arm64"),
    ),
    "qemu": Setting("QEMU's program for this host's architecture; empty: found on PATH", path=True),
    "virtiofsd": Setting("the virtiofs daemon; empty: found by QEMU's own descriptions", path=True),
    "image": Setting(
        "the guest image, a name from 'runvm image list' or a path; empty: the newest that was built", named=True
    ),
    "kernel": Setting("a guest kernel of your own instead of the image's", path=True),
    "initramfs": Setting("an initramfs of your own instead of the image's", path=True),
    "modules": Setting("the directory of kernel modules that belongs to that kernel", path=True),
    "kernel_args": Setting("words added to the guest kernel's command line"),
    "guest_suite": Setting(
        "the suite of Debian that 'runvm image build' makes the image of; empty: the one that this runvm is tested with"
    ),
    "guest_kernel": Setting(
        "the image's series of kernels, as 6.12; empty: the tested one, any in a suite of your own choice"
    ),
    "guest_crun": Setting("the image's series of crun, as 1.21; empty: the tested one, any in a suite of your choice"),
    "guest_mirror": Setting(
        "the mirror of Debian that the image's packages come from; empty: the one of the host's apt"
    ),
    "guest_security_mirror": Setting("the mirror of Debian's security updates; empty: the one of the host's apt"),
    "guest_keyring": Setting("the keys that sign that archive; empty: debian-archive-keyring's", path=True),
    "vcpus": Setting("virtual CPUs; 0: from the container's limit, else as many as the host has, at most 32", high=255),
    "memory_mib": Setting(
        "the guest's memory, MiB; 0: the container's limit plus overhead_mib", low=128, high=_MAX_MIB, zero=True
    ),
    "default_memory_mib": Setting(
        "the guest's memory where the container has no limit, MiB: what it begins with", low=128, high=_MAX_MIB
    ),
    "fixed_memory_mib": Setting(
        "the guest's memory at least, MiB, where the hypervisor can't let it grow (User Mode Linux); what isn't used"
        " takes none of the host's",
        low=128,
        high=_MAX_MIB,
    ),
    "max_memory_mib": Setting(
        "what such a guest may grow to as its containers need it, MiB; 0: as much as the host has",
        low=128,
        high=_MAX_MIB,
        zero=True,
    ),
    "overhead_mib": Setting("what the guest's kernel and agent get on top of the container's limit, MiB", high=65536),
    "state_dir": Setting("where containers' state lives (--root overrides it); should be a tmpfs", path=True),
    "data_dir": Setting("where guest images, templates and checkpoints of warm containers live", path=True),
    "template": Setting("start from a snapshot of a booted guest; the first start makes it"),
    "host_network": Setting(
        "a container that asks for the host's network: refuse it, or give it the virtual machine's own",
        choices=("refuse", "vm"),
    ),
    "container_hypervisors": Setting(
        "hypervisors that a container may choose by the annotation io.runvm.hypervisor, separated by commas"
    ),
    "boot_timeout_s": Setting("how long a guest may take to boot to its agent's answer, seconds", low=1, high=3600),
    "debug_console": Setting(
        "the guest's kernel says all it does on its console, which 'runvm debug console' shows; boots are slower"
    ),
    "log_file": Setting("a file for messages where --log is not given", path=True),
    "log_format": Setting("how lines of the log file look where --log-format is not given", choices=("text", "json")),
    "log_level": Setting("debug: as if --debug were given", choices=("info", "debug")),
}


class Origin(NamedTuple):
    """One effective setting and where its value came from, for `runvm config`."""

    key: str
    value: Value
    origin: str
    meaning: str


def file_in_use(file: str = DEFAULT_FILE) -> str:
    """The configuration file that counts: $RUNVM_CONFIG if it is set and not empty, else *file*."""
    return os.environ.get(FILE_VARIABLE) or file


def load(*, file: str = DEFAULT_FILE, annotations: Mapping[str, str] | None = None) -> Config:
    """The effective settings for a command, or for a container with those *annotations* of its config.json.

    $RUNVM_CONFIG overrides *file*; without *file* the defaults hold, but a file that the variable names must be there.
    Raises: ConfigError, naming the file or annotation, the key and what is allowed.
    """
    merged = _merge(file, annotations or {})
    return Config._make(merged[key][0] for key in Config._fields) if merged else Config()


def explain(*, file: str = DEFAULT_FILE, annotations: Mapping[str, str] | None = None) -> list[Origin]:
    """Every setting, its value and its origin ('default', a file's path, an annotation's name), in Config's order."""
    merged = _merge(file, annotations or {}) or _defaults()
    return [Origin(key, *merged[key], SETTINGS[key].meaning) for key in Config._fields]


def render_example() -> str:
    """A file with every key, its meaning and its default, all commented out: packaging/config.toml.example."""
    lines = [f"# {DEFAULT_FILE}: settings of runvm. Every key may be left out; what stands here is its default.", ""]
    for key, (default, _) in _defaults().items():
        setting = SETTINGS[key]
        allowed = f" ({_allowed(key)})" if setting.choices or setting.high else ""
        chosen = f"; annotation {ANNOTATION_PREFIX}{key}" if key in CONTAINER_KEYS else ""
        lines += [f"# {setting.meaning}{allowed}{chosen}", f"#{key} = {toml_value(default)}", ""]
    return "\n".join(lines)


def toml_value(value: Value) -> str:
    """*value* as TOML writes it."""
    import json

    return json.dumps(value, ensure_ascii=False)  # of these types, JSON's and TOML's spellings are the same


def _defaults() -> dict[str, tuple[Value, str]]:
    return {key: (value, "default") for key, value in Config._field_defaults.items()}


def _merge(file: str, annotations: Mapping[str, str]) -> dict[str, tuple[Value, str]]:
    """Each key's value and origin; empty if everything is the default."""
    path = file_in_use(file)
    if not path.startswith("/"):  # engines call from directories of theirs, a container's bundle say
        raise ConfigError(f"${FILE_VARIABLE} is {path}, which is no absolute path")
    merged: dict[str, tuple[Value, str]] = {}
    for key, raw in _read(path, must_exist=path != file).items():
        merged[key] = (_checked(key, raw, path), path)
    for name, text in annotations.items():
        if name.startswith(ANNOTATION_PREFIX) and name not in (WARM, WARM_VOLUMES):
            key = name.removeprefix(ANNOTATION_PREFIX)
            if key == "hypervisor":
                _check_choosable(text, str(merged.get("container_hypervisors", ("", ""))[0]), name)
                merged[key] = (text, f"annotation {name}")
            else:
                merged[key] = (_from_annotation(key, text, name), f"annotation {name}")
    return {**_defaults(), **merged} if merged else merged


def _read(path: str, *, must_exist: bool) -> dict[str, object]:
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"{path} (named by ${FILE_VARIABLE}) does not exist") from None
        return {}
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not valid TOML: not UTF-8 at line {line}") from error
    plain = _plain(text)
    if plain is not None:
        return plain
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _plain(text: str) -> dict[str, object] | None:
    """What a file of plain lines says: KEY = "text", a number, true or false; None if there is any other line."""
    found: dict[str, object] = {}
    for line in text.split("\n"):
        line = line.strip(" ")
        if not line.isprintable():
            return None
        if not line or line.startswith("#"):
            continue
        key, _, raw = (part.strip(" ") for part in line.partition("="))
        if not (key.isascii() and key.isidentifier()) or key in found:
            return None
        if len(raw) > 1 and raw[0] == raw[-1] == '"' and not {'"', "\\"}.intersection(raw[1:-1]):
            found[key] = raw[1:-1]
        elif raw in {"true", "false"}:
            found[key] = raw == "true"
        elif raw.isascii() and raw.isdigit() and (raw[0] != "0" or raw == "0") and len(raw) < 10:
            found[key] = int(raw)
        else:
            return None
    return found


def _checked(key: str, raw: object, where: str) -> Value:
    """*raw* if it is a right value for *key*; ConfigError if it isn't, or there is no such key."""
    if key not in SETTINGS:
        _unknown(key, where, tuple(SETTINGS))
    default, setting = Config._field_defaults[key], SETTINGS[key]
    if isinstance(raw, bool) or isinstance(default, bool):  # first: a bool is an int, too
        if isinstance(raw, bool) and isinstance(default, bool):
            return raw
    elif isinstance(raw, int) and isinstance(default, int):
        if setting.low <= raw <= setting.high or setting.zero and raw == 0:
            return raw
    elif isinstance(raw, str) and isinstance(default, str) and _fits(key, raw, setting):
        return raw
    raise ConfigError(f"{where}: {key} = {_shown(raw)} is not allowed", do=f"it takes {_allowed(key)}")


def _fits(key: str, text: str, setting: Setting) -> bool:
    if not text.isprintable():  # control characters end up in command lines, where they only hide things
        return False
    if setting.choices:
        return text in setting.choices
    if setting.path:
        # engines call from a working directory of theirs, which may be gone: a relative path would mean nothing
        return text.startswith("/") or text == "" == Config._field_defaults[key]
    if setting.named:
        return text.startswith("/") or "/" not in text
    return text != "" or Config._field_defaults[key] == ""


def _from_annotation(key: str, text: str, name: str) -> Value:
    if key not in CONTAINER_KEYS:
        if key in SETTINGS:
            raise ConfigError(
                f"annotation {name}: a container may not choose this",
                do=f"set {key} in {DEFAULT_FILE}; containers may choose {', '.join(CONTAINER_KEYS)}",
            )
        _unknown(key, f"annotation {name}", CONTAINER_KEYS)
    raw: Value = text
    if isinstance(Config._field_defaults[key], bool):
        raw = {"true": True, "false": False}.get(text, text)
    elif text.isascii() and text.isdigit() and len(text) < 20:
        raw = int(text)
    return _checked(key, raw, f"annotation {name}")


def _check_choosable(text: str, allowed: str, name: str) -> None:
    """Raise ConfigError unless a container may choose the hypervisor *text*; *allowed* is container_hypervisors."""
    if text not in allowed.replace(",", " ").split():
        raise ConfigError(
            f"annotation {name}: a container may not choose the hypervisor {text}",
            do=f"containers may choose {allowed}" if allowed else f"set container_hypervisors in {DEFAULT_FILE}",
        )


def _unknown(key: str, where: str, keys: tuple[str, ...]) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(key, keys, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{where}: unknown key {key}", do=f"{hint}allowed: {', '.join(keys)}")


def _allowed(key: str) -> str:
    default, setting = Config._field_defaults[key], SETTINGS[key]
    if setting.choices:
        return "one of " + ", ".join(setting.choices)
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return ("0 or " if setting.zero else "") + f"a number from {setting.low} to {setting.high}"
    if setting.named:
        return "a name, an absolute path or an empty string"
    if setting.path:
        return "an absolute path" + (" or an empty string" if default == "" else "")
    return "a string without control characters" + ("" if default == "" else ", not empty")


def _shown(raw: object) -> str:
    if isinstance(raw, str | int):
        return toml_value(raw)
    return "a table" if isinstance(raw, dict) else str(raw)
