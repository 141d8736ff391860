"""`runvm update`: the resources object that the flags make."""

import json
import os
from pathlib import Path

import pytest

from runvm.cli import update
from runvm.cli.grammar import parse
from runvm.errors import SpecError, UnsupportedError, UsageError
from runvm.oci.shapes import JsonObject

MIB = 1024 * 1024


def resources(*argv: str) -> JsonObject:
    return update.resources(parse(update.COMMAND, [*argv, "c1"]))


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ([], {}),
        (["--memory", "100m"], {"memory": {"limit": 100 * MIB}}),
        (["--memory", "-1", "--memory-swap=-1"], {"memory": {"limit": -1, "swap": -1}}),
        (["--memory-reservation", "1048576"], {"memory": {"reservation": MIB}}),
        (["--cpu-share", "512"], {"cpu": {"shares": 512}}),
        (["--cpu-shares", "512"], {"cpu": {"shares": 512}}),
        (["--cpu-quota", "-1", "--cpu-period", "100000"], {"cpu": {"period": 100000, "quota": -1}}),
        (["--cpu-burst=7"], {"cpu": {"burst": 7}}),
        (["--cpu-idle", "1"], {"cpu": {"idle": 1}}),
        (["--cpu-idle=0"], {"cpu": {"idle": 0}}),
        (["--cpu-rt-period=5", "--cpu-rt-runtime=4"], {"cpu": {"realtimePeriod": 5, "realtimeRuntime": 4}}),
        (["--cpuset-cpus", "0-1", "--cpuset-mems", "0"], {"cpu": {"cpus": "0-1", "mems": "0"}}),
        (["--pids-limit", "20"], {"pids": {"limit": 20}}),
        (["--pids-limit", "-1"], {"pids": {"limit": -1}}),
        (["--pids-limit", "0", "--blkio-weight", "0"], {}),
        (["--blkio-weight", "500"], {"blockIO": {"weight": 500}}),
    ],
)
def test_flags(argv: list[str], wanted: JsonObject) -> None:
    assert resources(*argv) == wanted


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--blkio-weight", "70000"], r"resources: blockIO\.weight: must be from 0 to 1000, got 70000"),
        (["--blkio-weight", "-1"], r"resources: blockIO\.weight: must be from 0 to 1000, got -1"),
        (["--pids-limit", str(2**63)], r"resources: pids\.limit: must be from -9223372036854775808 to"),
        (["--cpu-quota", "10"], r"resources: cpu\.quota: must be from 1000 to"),
        (["--cpu-period", "1"], r"resources: cpu\.period: must be from 1000 to 1000000 microseconds, got 1"),
    ],
)
def test_values_that_no_kernel_takes(argv: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=f"^{message}"):
        resources(*argv)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1k", 1024),
        ("1K", 1024),
        ("1kb", 1024),
        ("1KiB", 1024),
        ("2g", 2 << 30),
        ("1.5m", 1572864),
        ("7b", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert update.parse_size("memory", text) == size


@pytest.mark.parametrize(
    "text", ["abc", "-5", "1e9", "m", "1x", "1ib", "1kk", "1.2.3m", "٣", "9" * 30, "9999999p", "1bb", "1bk"]
)
def test_what_is_no_size(text: str) -> None:
    """In runc's words."""
    with pytest.raises(UsageError, match=r"invalid value for memory: invalid size: '"):
        update.parse_size("memory", text)


@pytest.mark.parametrize(
    "argv", [["--cpu-quota", "abc"], ["--cpu-period", "-1"], ["--cpu-share", "1.5"], ["--pids-limit", "x"]]
)
def test_wrong_numbers(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="invalid value"):
        resources(*argv)


@pytest.mark.parametrize("flag", ["--l3-cache-schema", "--mem-bw-schema"])
def test_rdt_is_refused(flag: str) -> None:
    with pytest.raises(UnsupportedError, match=flag):
        resources(flag, "L3:0=f")


def test_kernel_memory_is_warned_of_and_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    assert resources("--kernel-memory", "1m") == {}
    assert "ignored" in capfd.readouterr().err


def test_a_file_of_resources_counts_alone(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps({"memory": {"limit": 5}}))
    assert resources("--resources", str(file), "--memory", "1m") == {"memory": {"limit": 5}}


def test_resources_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """As containerd calls it. The end of the input may come late, and in pieces."""
    reading, writing = os.pipe()
    kept = os.dup(0)
    try:
        os.dup2(reading, 0)
        os.write(writing, b'{"pids": ')
        os.write(writing, b'{"limit": 3}}')
        os.close(writing)
        assert resources("-r", "-") == {"pids": {"limit": 3}}
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)


@pytest.mark.parametrize("text", ["foo", '{"memory": {"limit": "x"}}', "[]"])
def test_wrong_resources(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(SpecError):
        resources("--resources", str(file))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.json: no such file or directory"):
        resources("--resources", str(tmp_path / "none.json"))
