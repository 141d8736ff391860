"""Paths and ids longer than a Unix socket's address, which has room for 107 bytes."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from framework.terminal import ConsoleSocket

if TYPE_CHECKING:
    from framework.runtime import Box, Runtime


@pytest.mark.only("runvm", "state_dir is its setting")
def test_a_long_state_directory(box: Box, runtime: Runtime) -> None:
    """The supervisor's socket and virtiofsd's are below it."""
    state_dir = f"{runtime.scratch}/{'a' * 100}/{'b' * 100}"
    with open(runtime.config_file, encoding="utf-8") as file:
        text = file.read()
    config = f"{runtime.scratch}/long.toml"
    with open(config, "w", encoding="utf-8") as file:
        file.write(text.replace(runtime.state_dir, state_dir))
    container = box("echo", "hello")
    container.bundle.save()
    environment = dict(os.environ) | {"RUNVM_CONFIG": config}
    result = runtime.call("run", "--bundle", container.bundle.path, container.id, env=environment)
    assert (result.code, result.stdout) == (0, b"hello\n"), result.describe()
    assert os.listdir(f"{state_dir}/sandboxes") == []
    shutil.rmtree(f"{runtime.scratch}/{'a' * 100}")


def test_the_longest_id_with_a_terminal(box: Box) -> None:
    """In the guest, too, sockets are named by it: the container's console and that of an exec."""
    container = box("sh", "-c", "tty; exec sleep 1000", cid="i" * 255)
    container.bundle.process["terminal"] = True
    terminal = container.terminal(lambda path: container.create("--console-socket", path))
    container.start()
    terminal.expect(b"/dev/pts/")
    flags = ("exec", "--tty", "--detach", "--console-socket")
    other = container.terminal(
        lambda path: container.runtime.ok(*flags, path, container.id, "sh", "-c", "tty; sleep 1")
    )
    other.expect(b"/dev/pts/")


@pytest.mark.differs("runc", "its console socket's path has room for 107 bytes")
def test_a_long_path_of_a_console_socket(box: Box, runtime: Runtime) -> None:
    """It is the caller's to choose."""
    short, long = f"{runtime.scratch}/short", f"{runtime.scratch}/{'l' * 200}"
    os.mkdir(short)
    console = ConsoleSocket(f"{short}/console")
    os.rename(short, long)
    try:
        container = box("sh", "-c", "tty; exec sleep 1000")
        container.bundle.process["terminal"] = True
        container.create("--console-socket", f"{long}/console")
        terminal = console.receive()
        container.start()
        terminal.expect(b"/dev/pts/")
        terminal.close()
    finally:
        os.rename(long, short)
        console.close()
        shutil.rmtree(short, ignore_errors=True)
