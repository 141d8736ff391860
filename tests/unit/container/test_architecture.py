"""Whose processor a container's programs are for: headers as they are, and as an image's author may have made them."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from runvm.config import Config
from runvm.container import architecture
from runvm.container.architecture import Program, find, of_header
from runvm.errors import HostError, UnsupportedError
from runvm.hypervisor import choice, drivers
from runvm.linux.architecture import KNOWN, host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AMD64, I386, ARM64, ARM, RISCV64, S390X, MIPS = 62, 3, 183, 40, 243, 22, 8


def elf(machine: int, *, bits: int = 64, big: bool = False) -> bytes:
    """The beginning of a program for the ELF *machine*."""
    ident = b"\x7fELF" + bytes((2 if bits == 64 else 1, 2 if big else 1, 1)) + bytes(9)
    return ident + struct.pack(">HH" if big else "<HH", 2, machine) + bytes(44)


def program(*args: str, env: tuple[str, ...] = (), cwd: str = "/") -> Program:
    """A process that is to run."""
    return Program(args, env, cwd)


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], None]:
    """Writes a file of the root filesystem tmp_path."""

    def write(path: str, data: bytes) -> None:
        target = tmp_path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (elf(AMD64), "amd64"),
        (elf(I386, bits=32), "amd64"),
        (elf(AMD64, bits=32), "amd64"),
        (elf(ARM64), "arm64"),
        (elf(ARM, bits=32), "arm64"),
        (elf(RISCV64), "riscv64"),
        (elf(S390X, big=True), "s390x"),
        (elf(0xBEEF), "ELF machine 48879 (little-endian)"),
        (elf(ARM64, big=True), "ELF machine 183 (big-endian)"),
        (elf(ARM64)[:20], "arm64"),
        (elf(ARM64)[:19], ""),
        (b"\x7fELF", ""),
        (b"", ""),
        (b"\x7fELF\2\3\1" + elf(ARM64)[7:], ""),
        (b"\x7fELF\2\0\1" + elf(ARM64)[7:], ""),
        (b"MZ" + bytes(100), ""),
    ],
)
def test_a_header_tells_whose_kernel_runs_the_program(head: bytes, expected: str) -> None:
    assert of_header(head) == expected


def test_the_program_that_is_named_decides(tmp_path: Path, put: Callable[[str, bytes], None]) -> None:
    put("/bin/sh", elf(AMD64))
    put("/opt/tool", elf(ARM64))
    assert find(str(tmp_path), program("/opt/tool")) == "arm64"
    assert find(str(tmp_path), program("tool", env=("PATH=/bin:/opt",))) == "arm64"
    assert find(str(tmp_path), program("./tool", cwd="/opt")) == "arm64"
    assert find(str(tmp_path), program("tool", env=("PATH=/opt", "PATH=/bin"))) == "amd64"


def test_a_script_is_as_its_interpreter(tmp_path: Path, put: Callable[[str, bytes], None]) -> None:
    put("/bin/sh", elf(AMD64))
    put("/usr/bin/python3", elf(ARM64))
    put("/app", b"#! /usr/bin/python3 -SI\nprint()\n")
    put("/outer", b"#!/app\n")
    put("/loop", b"#!/loop\n")
    put("/empty", b"#!\n")
    put("/long", b"#!" + b"x" * 5000)
    put("/plain", b"echo hello\n")
    assert find(str(tmp_path), program("/app")) == "arm64"
    assert find(str(tmp_path), program("/outer")) == "arm64"
    for name in ("/loop", "/empty", "/long", "/plain", "/missing", ""):
        assert find(str(tmp_path), program(name)) == "amd64", name


def test_symlinks_lead_inside_of_the_root_only(tmp_path: Path, put: Callable[[str, bytes], None]) -> None:
    root = tmp_path / "root"
    put("/root/bin/busybox", elf(ARM64))
    put("/outside", elf(RISCV64))
    for name, target in (
        ("absolute", "/bin/busybox"),
        ("out", "../../../../outside"),
        ("host", str(tmp_path / "outside")),
        ("circle", "circle"),
        ("magic", "/proc/self/exe"),
    ):
        (root / name).symlink_to(target)
    (root / "outside").write_bytes(elf(S390X, big=True))
    assert find(str(root), program("/absolute")) == "arm64"
    # as in a chroot: .. of the root is the root
    assert find(str(root), program("/out")) == "s390x"
    for name in ("/host", "/circle", "/magic", "/../../outside/nothing"):
        assert find(str(root), program(name)) == "arm64", name


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path, put: Callable[[str, bytes], None]) -> None:
    put("/lib/ld-linux-aarch64.so.1", elf(ARM64))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "bin").mkdir()
    os.mkfifo(tmp_path / "bin/sh")
    for name in ("/fifo", "/lib", "a\0b", "\ud800", "x" * 5000):
        assert find(str(tmp_path), program(name)) == "arm64", name


def test_where_nothing_tells_there_is_no_answer(tmp_path: Path) -> None:
    assert find(str(tmp_path), program("sh")) == ""
    assert find(str(tmp_path / "missing"), program("sh")) == ""
    assert find(str(tmp_path), Program((), (), "")) == ""


@pytest.mark.parametrize(
    ("head", "narrow"),
    [(elf(I386, bits=32), True), (elf(AMD64, bits=32), True), (elf(AMD64), False), (b"#!/bin/sh", False), (b"", False)],
)
def test_programs_of_32_bits(head: bytes, narrow: bool) -> None:
    assert architecture.is_narrow(head) == narrow


@pytest.mark.skipif(host() != "amd64", reason="programs of 32 bits are of x86 here")
def test_programs_of_32_bits_have_a_hypervisor_that_runs_them(
    tmp_path: Path, put: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where 'auto' is User Mode Linux, it is QEMU for them."""
    monkeypatch.setattr(drivers, "choice", lambda config: choice.Choice("uml", "KVM does not work here"))
    config = Config(data_dir=str(tmp_path / "data"), hypervisor="auto")
    put("/bin/sh", elf(AMD64))
    assert architecture.settle(config, str(tmp_path), program("sh")).hypervisor == "auto"
    put("/bin/sh", elf(I386, bits=32))
    assert architecture.settle(config, str(tmp_path), program("sh")).hypervisor == "qemu"
    with pytest.raises(UnsupportedError, match="of 32 bits, which a guest of hypervisor 'uml' doesn't run"):
        architecture.settle(config._replace(hypervisor="uml"), str(tmp_path), program("sh"))


def test_settings_of_the_containers_architecture(tmp_path: Path, put: Callable[[str, bytes], None]) -> None:
    config = Config(data_dir=str(tmp_path / "data"))
    assert architecture.settle(config, str(tmp_path), program("sh")).arch == "auto"
    put("/bin/sh", elf({"amd64": AMD64, "arm64": ARM64}[host()]))
    assert architecture.settle(config, str(tmp_path), program("sh")).arch == host()
    put("/bin/sh", elf(MIPS))
    with pytest.raises(UnsupportedError, match="for mips64el, of which there are no guests"):
        architecture.settle(config, str(tmp_path), program("sh"))


def test_an_architecture_without_an_image_is_named_with_what_builds_it(tmp_path: Path) -> None:
    other = next(name for name in KNOWN if name != host())
    with pytest.raises(HostError, match=f"programs are for {other}: there is no {other} guest image") as caught:
        architecture.settle(Config(arch=other, data_dir=str(tmp_path)), str(tmp_path), program("sh"))
    assert caught.value.do == f"run 'runvm image build --arch {other}'"


def test_a_seccomp_profile_for_the_host_becomes_one_for_the_guest() -> None:
    profile: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "arch_prctl"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_LOG"},
        ],
    }
    found = architecture.translated(profile, "amd64", "arm64")
    assert found["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert found["syscalls"][:2] == profile["syscalls"]
    assert found["syscalls"][2]["action"] == "SCMP_ACT_ALLOW"
    assert "set_tls" in found["syscalls"][2]["names"]
    assert len(profile["syscalls"]) == 2
    back = architecture.translated(
        {"architectures": ["SCMP_ARCH_AARCH64"], "syscalls": [{"names": ["set_tls"], "action": "SCMP_ACT_ALLOW"}]},
        "arm64",
        "amd64",
    )
    assert back["architectures"] == ["SCMP_ARCH_X86_64"]
    assert "arch_prctl" in back["syscalls"][1]["names"]


def test_a_profile_that_denies_by_a_list_gets_no_rule_that_it_has_not() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}
    assert architecture.translated(profile, "amd64", "arm64") == profile
