"""System calls made in another process's place (ptrace(2)): what a hypervisor could do that a guest has taken over."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_POKETEXT, _PEEKTEXT, _SINGLESTEP, _GETREGS, _SETREGS, _ATTACH, _DETACH = 4, 1, 9, 12, 13, 16, 17
_SYSCALL = 0x050F
# Places in user_regs_struct (sys/user.h)
_RAX, _ORIG_RAX, _RIP, _RSP = 10, 15, 16, 19
_ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class Injected:
    """A stopped process that calls what it is told."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.signals: list[int] = []
        self._registers = (ctypes.c_ulonglong * 27)()
        self._ptrace(_GETREGS, None, self._registers)
        self._place = self._registers[_RIP]
        self._text = self._ptrace(_PEEKTEXT, self._place, None)

    def call(self, *numbers: int | bytes) -> int:
        """A system call, given by its number and arguments: what it returns, or minus the error's number. Bytes
        are put on its stack."""
        number, *arguments = numbers
        assert isinstance(number, int)
        registers = (ctypes.c_ulonglong * 27)(*self._registers)
        registers[_RAX], registers[_ORIG_RAX] = number, ctypes.c_ulonglong(-1).value
        room = (registers[_RSP] - 8192) & ~0xFFF
        for place, argument in zip(_ARGUMENTS, arguments, strict=False):
            if isinstance(argument, bytes):
                self._write(room, argument)
                registers[place] = room
                room += (len(argument) + 16) & ~7
            else:
                registers[place] = ctypes.c_ulonglong(argument).value
        self._ptrace(_POKETEXT, self._place, self._text & ~0xFFFF | _SYSCALL)
        self._ptrace(_SETREGS, None, registers)
        while True:
            self._ptrace(_SINGLESTEP, None, None)
            _, status = os.waitpid(self.pid, 0)
            assert os.WIFSTOPPED(status), f"it ended with {status}"
            if os.WSTOPSIG(status) == signal.SIGTRAP:
                break
            self.signals.append(os.WSTOPSIG(status))
        self._ptrace(_GETREGS, None, registers)
        return ctypes.c_longlong(registers[_RAX]).value

    def restore(self) -> None:
        """As it was; the signals that came meanwhile are sent again."""
        self._ptrace(_POKETEXT, self._place, self._text)
        self._ptrace(_SETREGS, None, self._registers)
        for number in set(self.signals):
            os.kill(self.pid, number)

    def _write(self, address: int, data: bytes) -> None:
        data += bytes(8 - len(data) % 8)
        for offset in range(0, len(data), 8):
            self._ptrace(_POKETEXT, address + offset, int.from_bytes(data[offset : offset + 8], "little"))

    def _ptrace(self, request: int, address: int | None, data: object) -> int:
        ctypes.set_errno(0)
        value = data if data is None or isinstance(data, int) else ctypes.addressof(data)  # type: ignore[arg-type]
        result = int(_libc.ptrace(request, self.pid, address, value))
        if result == -1 and ctypes.get_errno():
            raise OSError(ctypes.get_errno(), f"ptrace {request}: {errno.errorcode[ctypes.get_errno()]}")
        return result & 0xFFFFFFFFFFFFFFFF


@contextmanager
def injected(pid: int) -> Iterator[Injected]:
    """The process *pid*, stopped meanwhile."""
    _libc.ptrace(_ATTACH, pid, None, None)
    os.waitpid(pid, 0)
    try:
        process = Injected(pid)
        try:
            yield process
        finally:
            process.restore()
    finally:
        _libc.ptrace(_DETACH, pid, None, None)
