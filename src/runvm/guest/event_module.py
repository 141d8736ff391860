"""A kernel module for the guest that tells watchers (inotify) of what happened to a file: agent.watches calls it.

The kernel tells of what is done by its own system calls alone, and what the host does to a shared file isn't. There is
no system call to tell of something without doing it, and the kernel's function for it, fsnotify(), is for modules. So
here is one, of some 240 bytes (guest.event_code). Layouts and checksums that differ from kernel to kernel come from one
of the kernel's own modules.

What is written to its parameter `event` is: 4 bytes each of mask (IN_*), cookie, length of the name, and nothing; the
path of the directory in 32 bytes; the path of the file in 32 bytes, either with NULs after it and possibly empty; the
name.
"""

from __future__ import annotations

import os
import struct

from runvm.guest import event_code
from runvm.records import NamedTuple

NAME = "runvm_events"
PARAMETER = "event"
PATTERN = "kernel/fs/btrfs/btrfs.ko"
"""The kernel's module to learn from: it calls the same functions."""
SERIES = ("6.1.", "6.12.")
"""Kernels of which is known where a dentry has its inode, and that FSNOTIFY_EVENT_INODE is 2 (fsnotify_backend.h)."""
_FUNCTIONS = ("kern_path", "fsnotify", "path_put", "module_layout")

# elf(5)
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_PROGBITS, _SYMTAB, _STRTAB, _RELA = 1, 2, 3, 4
_WRITE, _ALLOC, _EXEC, _INFO = 1, 2, 4, 0x40
_VERSION = struct.Struct("<Q56s")  # struct modversion_info


class _Pattern(NamedTuple):
    """What is learnt of a kernel's module: the code for its architecture, the size of struct module, where its name is
    in that, the text by which the kernel tells its own modules, and the checksums of functions."""

    code: event_code.Code
    size: int
    name_at: int
    vermagic: bytes
    versions: bytes


class _Section(NamedTuple):
    name: str
    kind: int
    flags: int
    data: bytes
    align: int = 8
    link: int = 0
    info: int = 0
    entry: int = 0


def build(pattern: bytes) -> bytes:
    """The module, for the kernel that the module *pattern* is of. Raises ValueError where that has not what is
    needed."""
    learnt = _learn(pattern)
    code = learnt.code
    text, calls = code.assembled()
    module = bytearray(learnt.size)
    module[learnt.name_at : learnt.name_at + len(NAME)] = NAME.encode()
    info = b"".join(
        word + b"\0"
        for word in (
            b"license=GPL",
            b"name=" + NAME.encode(),
            b"depends=",
            b"retpoline=Y",
            b"vermagic=" + learnt.vermagic,
        )
    )
    # the local symbols, then the others: text, parameter's operations, its name; struct module, functions
    outside = sorted({name for _, name in calls})
    strings = b"\0__this_module\0" + b"".join(name.encode() + b"\0" for name in outside)
    symbols = [
        _SYMBOL.pack(0, 0, 0, 0, 0, 0),
        *(_SYMBOL.pack(0, 3, 0, section, 0, 0) for section in (1, 3, 7)),
        _SYMBOL.pack(1, 0x11, 0, 8, 0, learnt.size),
        *(_SYMBOL.pack(strings.index(b"\0" + name.encode() + b"\0") + 1, 0x10, 0, 0, 0, 0) for name in outside),
    ]
    of_text = [_relocation(at, 5 + outside.index(name), code.call, code.addend) for at, name in calls]
    # struct kernel_param_ops: flags, set, get, free; struct kernel_param: name, mod, ops, perm, level, flags, arg
    parameter = struct.pack("<QQQHbBIQ", 0, 0, 0, 0o200, -1, 0, 0, 0)
    of_parameter = [_relocation(0, 3, code.address), _relocation(8, 4, code.address), _relocation(16, 2, code.address)]
    return _file(
        code.machine,
        [
            _Section(".text", _PROGBITS, _ALLOC | _EXEC, text, align=16),
            _Section(".rela.text", _RELA, _INFO, b"".join(of_text), link=10, info=1, entry=24),
            _Section(".data", _PROGBITS, _ALLOC | _WRITE, bytes(32)),
            _Section(".rela.data", _RELA, _INFO, _relocation(8, 1, code.address), link=10, info=3, entry=24),
            _Section("__param", _PROGBITS, _ALLOC, parameter),
            _Section(".rela__param", _RELA, _INFO, b"".join(of_parameter), link=10, info=5, entry=24),
            _Section(".rodata", _PROGBITS, _ALLOC, PARAMETER.encode() + b"\0", align=1),
            _Section(".gnu.linkonce.this_module", _PROGBITS, _ALLOC | _WRITE, bytes(module), align=64),
            _Section(".modinfo", _PROGBITS, _ALLOC, info, align=1),
            _Section(".symtab", _SYMTAB, 0, b"".join(symbols), link=11, info=4, entry=_SYMBOL.size),
            _Section(".strtab", _STRTAB, 0, strings, align=1),
            _Section("__versions", _PROGBITS, _ALLOC, learnt.versions, align=32),
            *(_Section(name, _PROGBITS, _ALLOC | _EXEC, bytes(1), align=1) for name in code.sections),
        ],
    )


def add(modules: str, release: str, target: str) -> bool:
    """Write the module for the kernel *release*, whose modules are in *modules*, to *target*; False where it is one
    that nothing is known of: its guests' watchers aren't told."""
    import lzma

    path = os.path.join(modules, PATTERN)
    if not release.startswith(SERIES):
        return False
    try:
        if os.path.exists(path):
            with open(path, "rb") as file:
                pattern = file.read()
        else:
            with lzma.open(f"{path}.xz") as packed:
                pattern = packed.read()
        module = build(pattern)
    except (OSError, ValueError, lzma.LZMAError):
        return False
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(module)
    return True


def _relocation(at: int, symbol: int, kind: int, addend: int = 0) -> bytes:
    return _RELOCATION.pack(at, symbol << 32 | kind, addend)


def _file(machine: int, sections: list[_Section]) -> bytes:
    """A relocatable ELF file for *machine* of *sections*, to which the null section and that of the names are added."""
    sections = [_Section("", 0, 0, b"", align=0), *sections, _Section(".shstrtab", _STRTAB, 0, b"", align=1)]
    names = b"".join(section.name.encode() + b"\0" for section in sections)
    sections[-1] = sections[-1]._replace(data=names)
    body = bytearray(_HEADER.size)
    headers = []
    name_at = 0
    for section in sections:
        body += bytes(-len(body) % max(section.align, 1))
        headers.append(
            _SECTION.pack(
                name_at, section.kind, section.flags, 0, len(body) if section.kind else 0, len(section.data),
                section.link, section.info, section.align, section.entry,
            )
        )  # fmt: skip
        body += section.data
        name_at += len(section.name) + 1
    body += bytes(-len(body) % 8)
    at = len(body)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    relocatable = 1
    body[: _HEADER.size] = _HEADER.pack(
        identity,
        relocatable,
        machine,
        1,
        0,
        0,
        at,
        0,
        _HEADER.size,
        0,
        0,
        _SECTION.size,
        len(headers),
        len(headers) - 1,
    )
    return bytes(body) + b"".join(headers)


def _learn(pattern: bytes) -> _Pattern:
    try:
        machine, sections = _sections(pattern)
        code = event_code.BY_MACHINE[machine]
        module, info, versions = (sections[name] for name in (".gnu.linkonce.this_module", ".modinfo", "__versions"))
        name = next(word[5:] for word in info.split(b"\0") if word.startswith(b"name="))
        vermagic = next(word[9:] for word in info.split(b"\0") if word.startswith(b"vermagic="))
    except (KeyError, StopIteration, struct.error, IndexError) as error:
        raise ValueError("no module of Linux's") from error
    found = {}
    for at in range(0, len(versions) - _VERSION.size + 1, _VERSION.size):
        function = versions[at + 8 : at + _VERSION.size].rstrip(b"\0").decode(errors="replace")
        found[function] = versions[at : at + _VERSION.size]
    name_at = module.find(name + b"\0")
    if name_at < 0 or any(function not in found for function in _FUNCTIONS):
        raise ValueError("a module of a kernel that is otherwise than known")
    return _Pattern(code, len(module), name_at, vermagic, b"".join(found[function] for function in _FUNCTIONS))


def _sections(file: bytes) -> tuple[int, dict[str, bytes]]:
    """The number of the architecture of an ELF file, and its sections."""
    header = _HEADER.unpack_from(file)
    if header[0][:6] != b"\x7fELF\x02\x01":
        raise KeyError("not an ELF file of 64 bits")
    at, count, names = header[6], header[12], header[13]
    headers = [_SECTION.unpack_from(file, at + number * _SECTION.size) for number in range(count)]
    strings = file[headers[names][4] : headers[names][4] + headers[names][5]]
    found = {}
    for entry in headers:
        name = strings[entry[0] : strings.index(b"\0", entry[0])].decode(errors="replace")
        found[name] = file[entry[4] : entry[4] + entry[5]]
    return header[2], found
