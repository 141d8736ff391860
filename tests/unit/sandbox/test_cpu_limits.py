"""Which limits of CPU time are written down for a virtual machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("cpu", "kept"),
    [
        ({"quota": 5000, "period": 50000, "shares": 2, "cpus": "0"}, {"quota": 5000, "period": 50000, "shares": 2}),
        ({"period": 50000}, {"period": 50000}),  # runc shows it on the host, too
        ({"quota": -1}, {"quota": -1}),
        ({"quota": 0, "period": 0, "shares": 0, "idle": 0, "cpus": "0"}, {}),
    ],
)
def test_what_is_given_is_kept(tmp_path: Path, cpu: dict[str, Any], kept: dict[str, int]) -> None:
    sandbox = registry.locate(str(tmp_path), "x")
    directory = tmp_path / "sandboxes" / "x"
    directory.mkdir(parents=True)
    cpu_limits.note(sandbox, "one", ("/sys/fs/cgroup/one",), cpu)
    assert cpu_limits.of(sandbox, "one") == kept
