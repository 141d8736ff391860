"""A program without one of its libraries: the distribution's own crun."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from runvm.errors import HostError
from runvm.guest import elf

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "/usr/bin/crun"
LIBRARY = "libsystemd.so.0"


@pytest.fixture
def program() -> bytes:
    with open(PROGRAM, "rb") as file:
        return file.read()


def loaded(path: str) -> set[str]:
    """Names of the libraries that the dynamic linker loads for a program (ld.so(8))."""
    listed = subprocess.run(
        [path], env={"LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=True, timeout=10
    )
    return {os.path.basename(line.split()[0]) for line in listed.stdout.splitlines()}


def test_the_library_is_no_longer_loaded_and_the_program_runs(program: bytes, tmp_path: Path) -> None:
    path = f"{tmp_path}/crun"
    with open(path, "wb") as file:
        file.write(elf.without_library(program, LIBRARY))
    os.chmod(path, 0o755)
    before, after = loaded(PROGRAM), loaded(path)
    assert LIBRARY in before
    assert LIBRARY not in after
    assert {"libseccomp.so.2", "libyajl.so.2", "libc.so.6"} <= after
    said = subprocess.run([path, "--version"], capture_output=True, check=True, timeout=10)
    assert said.stdout.startswith(b"crun version")
    spec = subprocess.run([path, "spec"], cwd=tmp_path, check=True, timeout=10)
    assert spec.returncode == 0


def test_nothing_else_is_changed(program: bytes) -> None:
    """Neither a program that doesn't need it, nor what is no such program."""
    assert elf.without_library(program, "libabsent.so.1") == program
    once = elf.without_library(program, LIBRARY)
    assert len(once) == len(program)
    assert elf.without_library(once, LIBRARY) == once
    assert elf.without_library(b"#!/bin/sh\n", LIBRARY) == b"#!/bin/sh\n"
    assert elf.without_library(program[:5] + b"\2" + program[6:], LIBRARY)[5:6] == b"\2", "big-endian: as it is"


@pytest.mark.parametrize("size", [20, 64, 700, 20000])
def test_half_a_program_is_refused(program: bytes, size: int) -> None:
    with pytest.raises(HostError, match="no sound ELF file"):
        elf.without_library(program[:size], LIBRARY)
