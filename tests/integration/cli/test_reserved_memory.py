"""Memory that a program reserves and doesn't use, as JVMs, databases and sanitizers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework import rootfs

if TYPE_CHECKING:
    from framework.runtime import Box

SCRIPT = """
import mmap, os
PRIVATE_ANONYMOUS, NORESERVE = 0x22, 0x4000
gib = 1 << 30
held = [mmap.mmap(-1, 2 * gib, flags=PRIVATE_ANONYMOUS)]
held[0][5] = 1
held += [mmap.mmap(-1, 512 << 20, flags=PRIVATE_ANONYMOUS) for _ in range(8)]
held += [mmap.mmap(-1, 16 * gib, flags=PRIVATE_ANONYMOUS | NORESERVE)]
# a child has all of it once more
child = os.fork()
if child == 0:
    os._exit(held[0][5])
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_more_memory_can_be_reserved_than_a_virtual_machine_starts_with(box: Box) -> None:
    """At once, in parts, without reserve; and a process that has it can fork."""
    container = box("python3", "-SI", "/opt/reserve.py")
    rootfs.install_python(container.bundle.rootfs)
    container.bundle.file("/opt/reserve.py", SCRIPT)
    assert container.run().expect(0).text == "1"
