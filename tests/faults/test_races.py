"""Several commands on one container at the same time: each does its work or says in known words why not."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

import pytest

from runvm.errors import ALREADY_EXISTS

if TYPE_CHECKING:
    from framework.process import Process, Result
    from framework.runtime import Box, Container

KNOWN = re.compile(
    r"does not exist|not running|already exists|already running|has stopped|stopped container"
    r"|that is not stopped|no such process|paused"
)
pytestmark = pytest.mark.only("runvm", "runc's own words")


def ended(commands: list[Process], timeout: float = 90) -> list[Result]:
    """All of them, ended, without a traceback and with known words where they failed."""
    results = [command.wait(timeout) for command in commands]
    for result in results:
        assert b"Traceback" not in result.stderr, result.describe()
        assert b"internal error" not in result.stderr, result.describe()
        assert result.code == 0 or KNOWN.search(result.stderr.decode()), result.describe()
    return results


def creates(container: Container, count: int, command: str = "create") -> list[Process]:
    """So many creates of one id."""
    container.bundle.save()
    with open("/dev/null", "wb") as null:
        arguments = (command, "--bundle", container.bundle.path)
        log = f"{container.bundle.path}/log"
        return [
            container.runtime.start(*arguments, container.id, stdout=null, stderr=null, log=f"{log}{number}")
            for number in range(count)
        ]


def test_of_many_creates_and_starts_one_succeeds(box: Box) -> None:
    """The others hear that it exists, or runs; `state` tells the truth at any moment."""
    container = box.idle()
    commands = creates(container, 3)
    while any(command.running() for command in commands):
        result = container.runtime.call("state", container.id)
        assert result.code == 0 or "does not exist" in result.error
        if result.code == 0:
            assert result.json()["status"] in ("creating", "created")
    results = [command.wait(90) for command in commands]
    assert sorted(result.code for result in results) == [0, 1, 1]
    said = ""
    for name in os.listdir(container.bundle.path):
        if name.startswith("log"):
            with open(f"{container.bundle.path}/{name}", encoding="utf-8") as file:
                said += file.read()
    assert said.count(ALREADY_EXISTS) == 2
    assert container.status == "created"
    results = ended([container.runtime.start("start", container.id) for _ in range(3)])
    assert sorted(result.code for result in results) == [0, 1, 1]
    assert container.sh("echo well") == "well"


def test_everything_at_once_ends(box: Box) -> None:
    """exec, kill, pause, resume, update, start, ps and several deletes together: all end, and nothing is left."""
    container = box.sleeper()
    start, name = container.runtime.start, container.id
    commands = [
        start("exec", name, "true"),
        start("delete", "--force", name),
        start("kill", name, "KILL"),
        start("exec", name, "sleep", "30"),
        start("pause", name),
        start("delete", "--force", name),
        start("resume", name),
        start("state", name),
        start("start", name),
        start("ps", name),
        start("delete", name),
        start("update", "--memory", "300000000", name),
    ]
    for result in (results := [command.wait(100) for command in commands]):
        assert b"Traceback" not in result.stderr, result.describe()
        assert b"internal error" not in result.stderr, result.describe()
    assert results[1].code == results[5].code == 0
    assert "does not exist" in container.runtime.call("state", name).error


def test_create_and_delete_at_once(box: Box) -> None:
    """delete --force while a create is at any point: it waits for it, or makes it fail; then the id is free."""
    for moment in (0.0, 0.1, 0.3):
        container = box.idle()
        commands = creates(container, 1)
        time.sleep(moment)
        deleted = container.runtime.start("delete", "--force", container.id)
        commands[0].wait(90)
        deleted.wait(130).expect(0)
        container.delete("--force")
        assert "does not exist" in container.runtime.call("state", container.id).error
