"""What descriptors lead to."""

from __future__ import annotations

import os

from runvm.linux import files


def test_only_the_null_device_is_null() -> None:
    for path, expected in ((os.devnull, True), ("/dev/zero", False), (__file__, False)):
        fd = os.open(path, os.O_RDONLY)
        try:
            assert files.is_null(fd) is expected
        finally:
            os.close(fd)
