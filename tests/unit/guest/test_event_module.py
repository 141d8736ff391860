"""The guest's kernel module for watchers."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from runvm.guest import event_code, event_module

if TYPE_CHECKING:
    from pathlib import Path


def module(name: bytes, functions: tuple[bytes, ...], machine: int = 62) -> bytes:
    """What stands for a module of the kernel's."""
    versions = b"".join(event_module._VERSION.pack(0x1234, function) for function in functions)
    return event_module._file(
        machine,
        [
            event_module._Section(".modinfo", 1, 2, b"license=GPL\0name=" + name + b"\0vermagic=6.12.1 SMP \0"),
            event_module._Section(".gnu.linkonce.this_module", 1, 3, (bytes(24) + name + b"\0").ljust(1280, b"\0")),
            event_module._Section("__versions", 1, 2, versions),
        ],
    )


WANTED = tuple(name.encode() for name in event_module._FUNCTIONS)


ASSEMBLERS = {62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu"}
"""Debian's binutils for each machine."""


@pytest.mark.parametrize("code", event_code.BY_MACHINE.values(), ids=lambda code: ASSEMBLERS[code.machine])
def test_the_machine_code_is_what_the_text_beside_it_says(tmp_path: Path, code: event_code.Code) -> None:
    """Assembled, it gives the same bytes."""
    tools = ASSEMBLERS[code.machine]
    if shutil.which(f"{tools}-as") is None:
        pytest.skip(f"needs binutils-{tools.replace('_', '-')}")
    syntax = [".intel_syntax noprefix"] if code is event_code.AMD64 else []
    source = "\n".join([*syntax, *(text for _, text in code.lines), ""])
    subprocess.run([f"{tools}-as", "-o", tmp_path / "o", "-"], input=source, text=True, check=True, timeout=30)
    subprocess.run(
        [f"{tools}-objcopy", "-O", "binary", "-j", ".text", tmp_path / "o", tmp_path / "bin"], check=True, timeout=30
    )
    assert (tmp_path / "bin").read_bytes() == code.assembled()[0]


@pytest.mark.parametrize("machine", event_code.BY_MACHINE)
def test_it_is_for_the_kernels_architecture(machine: int) -> None:
    """As that of the module it learns from; arm64's kernel takes none without room for its jumps."""
    built = event_module.build(module(b"btrfs", WANTED, machine))
    found, sections = event_module._sections(built)
    assert found == machine
    assert sections[".text"] == event_code.BY_MACHINE[machine].assembled()[0]
    assert {*event_code.BY_MACHINE[machine].sections} <= {*sections}


def test_it_is_of_the_kernel_whose_module_it_learns_from() -> None:
    """Size of struct module, place of the name, the kernel's own text, checksums of what it calls."""
    built = event_module.build(module(b"btrfs", (b"other", *WANTED)))
    _, sections = event_module._sections(built)
    this = sections[".gnu.linkonce.this_module"]
    assert len(this) == 1280
    assert this[24 : 24 + 13] == b"runvm_events\0"
    assert b"vermagic=6.12.1 SMP \0" in sections[".modinfo"]
    assert len(sections["__versions"]) == 64 * len(WANTED)
    assert b"other" not in sections["__versions"]


@pytest.mark.parametrize(
    "broken", [b"", b"\x7fELF\x02\x01", module(b"btrfs", WANTED[1:]), module(b"btrfs", WANTED, 243), bytes(4096)]
)
def test_a_kernel_that_is_otherwise_has_none(broken: bytes) -> None:
    """Rather none than a wrong one."""
    with pytest.raises(ValueError, match="module"):
        event_module.build(broken)


def test_only_known_kernels_get_one(tmp_path: Path) -> None:
    """By their series; the file is made with its directory."""
    path = tmp_path / event_module.PATTERN
    path.parent.mkdir(parents=True)
    path.write_bytes(module(b"btrfs", WANTED))
    target = tmp_path / "lib" / "events.ko"
    assert not event_module.add(str(tmp_path), "7.1.0-amd64", str(target))
    assert not event_module.add(str(tmp_path / "none"), "6.12.1-amd64", str(target))
    assert event_module.add(str(tmp_path), "6.12.1-amd64", str(target))
    assert target.read_bytes().startswith(b"\x7fELF")
    foreign = bytearray(path.read_bytes())
    foreign[18:20] = (243).to_bytes(2, "little")  # EM_RISCV
    path.write_bytes(foreign)
    assert not event_module.add(str(tmp_path), "6.12.1-riscv64", str(tmp_path / "other.ko"))
