"""The guest's end of $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from runvm.agent import notify
from runvm.linux import sockets
from runvm.linux.loop import Loop
from runvm.protocol import names


@pytest.mark.parametrize("length", [1, 108, 255])
def test_a_container_s_id_may_be_as_long_as_a_file_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """What is sent there is heard; nothing of it is left."""
    monkeypatch.setattr(notify, "notify_socket", lambda name: f"{tmp_path}{names.notify_socket(name)}")
    loop, said = Loop(), list[str]()
    made = notify.Notify(loop, "c" * length, said.append)
    path = f"{tmp_path}{names.notify_socket('c' * length)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sockets.connect(sender, path)
        sender.send(b"READY=1")
    loop.turn(5)
    assert said == ["READY=1"]
    made.close()
    assert os.listdir(f"{tmp_path}/run/runvm/notify") == []
