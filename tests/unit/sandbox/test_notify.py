"""What of a container's sd_notify(3) messages the host hears."""

import os
import socket
from pathlib import Path

from runvm.sandbox import notify


def test_the_guests_numbers_are_left_out() -> None:
    assert notify.passed("READY=1\nMAINPID=7\nSTATUS=up = well\nFDSTORE=1\n\nFDNAME=x") == "READY=1\nSTATUS=up = well"
    assert notify.passed("READY") == "READY"
    assert notify.passed("") == ""
    assert notify.passed("STATUS=red \x1b[31m\r") == "STATUS=red ?[31m?", "it is shown on a terminal"


def test_a_socket_with_a_long_name_is_reached(tmp_path: Path) -> None:
    """A bundle's path is longer than a socket's name may be (unix(7))."""
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        home = os.getcwd()
        os.chdir(directory)
        try:
            listener.bind("s")
        finally:
            os.chdir(home)
        listener.settimeout(10)
        notifier = notify.Notifier(f"{directory}/s")
        notifier.say("MAINPID=7")
        notifier.say("READY=1\nMAINPID=7")
        assert listener.recv(100) == b"READY=1"
        notifier.close()
