"""A bundle with a root directory, and the config.json files that were recorded from Docker, Podman and CRI."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runvm.oci import spec

DATA = Path(__file__).parent / "data"

Load = Callable[[dict[str, Any]], spec.Spec]


@pytest.fixture(scope="session")
def _runc_spec() -> dict[str, Any]:
    return json.loads((DATA / "runc-spec.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def config(_runc_spec: dict[str, Any]) -> dict[str, Any]:
    """What `runc spec` wrote, for a test to spoil."""
    return copy.deepcopy(_runc_spec)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle without its config.json."""
    path = tmp_path / "bundle"
    (path / "rootfs").mkdir(parents=True)
    return path


@pytest.fixture
def load(bundle: Path) -> Load:
    """Write a config.json into the bundle and load it as `create` does."""

    def write_and_load(config: dict[str, Any]) -> spec.Spec:
        (bundle / "config.json").write_text(json.dumps(config))
        return spec.load(str(bundle))

    return write_and_load
