"""config.json is read once, by `create`: later changes have no effect (runtime.md, Create)."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from framework.runtime import Box, Container


@pytest.fixture
def created(box: Box) -> Container:
    """A container whose process, environment and hooks are those of its config.json at `create`."""
    container = box.sh("trap 'exit 0' TERM; echo $WORD; while :; do sleep 1000 & wait $!; done")
    bundle = container.bundle
    bundle.process["env"].append("WORD=first")
    for kind in ("poststart", "poststop"):
        script = f"#!/bin/sh\necho {kind} >>{container.runtime.scratch}/{container.id}.hooks\n"
        path = f"{container.runtime.scratch}/{container.id}.{kind}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(script)
        os.chmod(path, 0o755)
        bundle.hook(kind, path)
    container.create()
    return container


def hooks(container: Container) -> list[str]:
    """Those that have run."""
    with open(f"{container.runtime.scratch}/{container.id}.hooks", encoding="utf-8") as file:
        return file.read().split()


def edit(container: Container) -> None:
    """Another process, environment and no hooks."""
    config = json.loads(json.dumps(container.bundle.config))
    config["process"]["args"] = ["false"]
    config["process"]["env"] = ["PATH=/bin", "WORD=second"]
    config["process"]["cwd"] = "/nowhere"
    config["hooks"] = {}
    with open(f"{container.bundle.path}/config.json", "w", encoding="utf-8") as file:
        json.dump(config, file)


def spoil(container: Container) -> None:
    """No JSON."""
    with open(f"{container.bundle.path}/config.json", "w", encoding="utf-8") as file:
        file.write("{")


def remove(container: Container) -> None:
    """The bundle without its root filesystem, which the container still has open."""
    os.unlink(f"{container.bundle.path}/config.json")


@pytest.mark.parametrize("change", [edit, spoil, remove])
@pytest.mark.differs("runc", "reads config.json again")
@pytest.mark.differs("crun", "reads config.json again")
def test_what_happens_to_config_json_after_create_has_no_effect(created: Container, change: object) -> None:
    """start runs the first process and the poststart hook, exec has the first environment, delete runs poststop."""
    assert callable(change)
    change(created)
    created.start()
    created.wait_stdout(b"first\n")
    assert created.sh("echo $WORD; pwd") == "first\n/"
    assert hooks(created) == ["poststart"]
    created.kill("TERM")
    created.wait()
    created.delete()
    assert hooks(created) == ["poststart", "poststop"]


@pytest.mark.only("runvm", "reads config.json once")
def test_delete_runs_the_poststop_hooks_of_a_bundle_that_has_gone(created: Container) -> None:
    """Engines remove the bundle when they like."""
    created.start()
    created.kill("KILL")
    created.wait()
    shutil.rmtree(created.bundle.path)
    os.makedirs(created.bundle.path)
    created.delete()
    assert hooks(created) == ["poststart", "poststop"]
