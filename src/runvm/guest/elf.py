"""Reads which shared libraries a program needs, and takes one out that it can do without, by its dynamic section.

crun needs libsystemd only where systemd is its cgroup manager or journald its log, neither of which a guest has; with
the five libraries that come with it, it is most of what the dynamic linker does at each call of crun.

Sources: elf(5); the generic ABI's chapter on dynamic linking; the LSB's on symbol versions.
"""

from __future__ import annotations

import struct

from runvm.errors import HostError
from runvm.records import NamedTuple

_IDENT = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_PT_LOAD, _PT_DYNAMIC = 1, 2
_SHT_VERSYM = 0x6FFFFFFF
_NULL, _NEEDED, _STRTAB, _SYMTAB = 0, 1, 5, 6
_VERSYM, _VERNEED, _VERNEEDNUM = 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF
_GLOBAL, _WEAK = 1, 2
_VERSION = 0x7FFF
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NEED = struct.Struct("<HHIII")
_NEEDED_VERSION = struct.Struct("<IHHII")


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    size: int


class _Need(NamedTuple):
    """The versions that are needed of one library: where the record is, its library's name, the versions' numbers."""

    offset: int
    library: int
    versions: set[int]


def without_library(program: bytes, library: str) -> bytes:
    """*program* without its need for *library* (a soname): the library's functions are null there, and to call one is
    a segmentation fault.

    A program that isn't a 64-bit little-endian ELF file, or doesn't need the library, is returned as it is. Raises
    HostError where its tables make no sense.
    """
    try:
        return _edited(program, library.encode())
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise HostError(f"a program of the guest's packages is no sound ELF file: {error}") from None


def needed(program: bytes) -> list[str]:
    """The libraries (sonames) that *program* is linked to; none for what is no 64-bit little-endian ELF file.

    Raises HostError where its tables make no sense.
    """
    try:
        return _needed(program)
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise HostError(f"a program of the guest's packages is no sound ELF file: {error}") from None


def _needed(program: bytes) -> list[str]:
    if not program.startswith(_IDENT):
        return []
    segments = _segments(program)
    entries = _dynamic(program, segments)
    if not entries:
        return []
    strings = _offset(segments, dict(entries)[_STRTAB])
    starts = [strings + value for tag, value in entries if tag == _NEEDED]
    return [program[start : program.index(b"\0", start)].decode() for start in starts]


def _dynamic(program: bytes | bytearray, segments: list[_Segment]) -> list[tuple[int, int]]:
    """Tags and values of the dynamic section; none in a static program."""
    section = next((segment for segment in segments if segment.kind == _PT_DYNAMIC), None)
    entries = []
    if section is not None:
        for tag, value in _DYNAMIC.iter_unpack(program[section.offset : section.offset + section.size]):
            if tag == _NULL:
                break
            entries.append((tag, value))
    return entries


def _edited(program: bytes, library: bytes) -> bytes:
    if not program.startswith(_IDENT):
        return program
    data = bytearray(program)
    segments = _segments(data)
    dynamic = next((segment for segment in segments if segment.kind == _PT_DYNAMIC), None)
    if dynamic is None:
        return program
    entries = _dynamic(data, segments)
    tables = dict(entries)
    strings = _offset(segments, tables[_STRTAB])

    def text(index: int) -> bytes:
        return bytes(data[strings + index : data.index(b"\0", strings + index)])

    kept = [(tag, value) for tag, value in entries if tag != _NEEDED or text(value) != library]
    if len(kept) == len(entries):
        return program
    if _VERNEED in tables:
        needs = _needs(data, _offset(segments, tables[_VERNEED]), tables[_VERNEEDNUM])
        left = [need for need in needs if text(need.library) != library]
        _chain(data, left)
        _weaken(
            data,
            _offset(segments, tables[_SYMTAB]),
            _offset(segments, tables[_VERSYM]),
            set().union(*(need.versions for need in needs if need not in left)),
        )
        first = tables[_VERNEED] + left[0].offset - needs[0].offset if left else 0
        changed = {_VERNEED: first, _VERNEEDNUM: len(left)}
        kept = [(tag, changed.get(tag, value)) for tag, value in kept if left or tag not in changed]
    table = b"".join(_DYNAMIC.pack(*entry) for entry in kept)
    data[dynamic.offset : dynamic.offset + dynamic.size] = table.ljust(dynamic.size, b"\0")
    return bytes(data)


def _segments(data: bytes | bytearray) -> list[_Segment]:
    (headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    found = []
    for index in range(count):
        kind, _, offset, address, _, in_file = struct.unpack_from("<IIQQQQ", data, headers + index * size)
        found.append(_Segment(kind, offset, address, in_file))
    return found


def _offset(segments: list[_Segment], address: int) -> int:
    """Where in the file an address is."""
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return segment.offset + address - segment.address
    raise ValueError(f"the address {address:#x} is in no segment")


def _needs(data: bytearray, offset: int, count: int) -> list[_Need]:
    found = []
    for _ in range(count):
        _, versions, library, first, following = _NEED.unpack_from(data, offset)
        numbers, at = set(), offset + first
        for _ in range(versions):
            _, _, number, _, further = _NEEDED_VERSION.unpack_from(data, at)
            numbers.add(number & _VERSION)
            at += further
        found.append(_Need(offset, library, numbers))
        offset += following
    return found


def _chain(data: bytearray, needs: list[_Need]) -> None:
    """Let each record lead to the next of *needs*."""
    for need, following in zip(needs, [*needs[1:], None], strict=True):
        version, versions, library, first, _ = _NEED.unpack_from(data, need.offset)
        distance = following.offset - need.offset if following else 0
        _NEED.pack_into(data, need.offset, version, versions, library, first, distance)


def _weaken(data: bytearray, symbols: int, versions: int, dropped: set[int]) -> None:
    """Make each symbol that is needed in a *dropped* version a weak one in any version: null, where nothing has it."""
    for index in range(_count_symbols(data)):
        (version,) = struct.unpack_from("<H", data, versions + 2 * index)
        name, info, other, section, value, size = _SYMBOL.unpack_from(data, symbols + _SYMBOL.size * index)
        if section == 0 and version & _VERSION in dropped:
            struct.pack_into("<H", data, versions + 2 * index, _GLOBAL)
            weak = _WEAK << 4 | info & 0xF
            _SYMBOL.pack_into(data, symbols + _SYMBOL.size * index, name, weak, other, section, value, size)


def _count_symbols(data: bytearray) -> int:
    """As many as have a version; the dynamic section itself doesn't tell."""
    (headers,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    for index in range(count):
        _, kind, _, _, _, length = struct.unpack_from("<IIQQQQ", data, headers + index * size)
        if kind == _SHT_VERSYM:
            return int(length) // 2
    raise ValueError("no section of symbol versions")
