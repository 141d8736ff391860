"""Starts of virtual machines take start_slots."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from typing import IO, TYPE_CHECKING

from runvm.sandbox import start_slots

if TYPE_CHECKING:
    from pathlib import Path

TAKE = (
    "import sys; from runvm.sandbox import start_slots as slots; slots.take(sys.argv[1]); "
    "print('mine', flush=True); sys.stdin.read()"
)


def taker(directory: str) -> subprocess.Popen[bytes]:
    """A process that wants a turn, says so when it has it, and keeps it until its stdin ends."""
    source = os.path.dirname(os.path.dirname(os.path.dirname(start_slots.__file__)))
    argv = [sys.executable, "-c", TAKE, directory]
    environment = {"PYTHONPATH": source}
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def says(process: subprocess.Popen[bytes], *, within: float) -> bool:
    """Whether it has its turn by then."""
    assert process.stdout is not None
    stream: IO[bytes] = process.stdout
    return bool(select.select([stream], [], [], within)[0]) and stream.readline() == b"mine\n"


def test_a_turn_is_waited_for_and_ends_with_its_process(tmp_path: Path) -> None:
    """As many have one as there may be; the next gets it when one of them is killed."""
    takers = [taker(str(tmp_path)) for _ in range(start_slots.count())]
    late: subprocess.Popen[bytes] | None = None
    try:
        assert all(says(process, within=60) for process in takers)
        late = taker(str(tmp_path))
        assert not says(late, within=1)
        takers[0].kill()
        assert says(late, within=60)
    finally:
        for process in (*takers, *((late,) if late is not None else ())):
            process.kill()
            process.communicate()
