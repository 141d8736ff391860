"""Traffic to an address and port brought to sockets bound elsewhere, by a BPF program: the agent's DNS on
127.0.0.11:53, what the host's programs connect to at a namespace's own addresses.

To bind port 53 there would keep the container from binding 0.0.0.0:53, as DNS servers do; Docker avoids that by NAT,
which would cost the guest connection tracking of all its traffic. BPF_PROG_TYPE_SK_LOOKUP (Linux 5.9; kernel docs,
bpf/prog_sk_lookup) chooses the socket before the usual look-up does; it belongs to one network namespace and ends with
its link's descriptor.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

from runvm.linux import syscalls

_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
_SOCKMAP, _SK_LOOKUP_PROGRAM, _SK_LOOKUP_ATTACH = 15, 30, 36
_ATTRIBUTES = 128
"""Bytes of union bpf_attr given: the kernel wants those that it doesn't know to be zero, and takes fewer."""

# struct bpf_sk_lookup
_FAMILY, _PROTOCOL, _LOCAL_IP4, _LOCAL_PORT = 8, 12, 40, 60
_LOOKUP_ELEMENT, _SK_RELEASE, _SK_ASSIGN = 1, 86, 124

_libc = ctypes.CDLL(None, use_errno=True)


def steer(netns: int, address: str, port: int, *, udp: int, tcp: int) -> int:
    """Let what comes to IPv4 *address* ('': 127.0.0.1 and all beyond 127.0.0.0/8) and *port* (0: every one) in *netns*
    go to these sockets, the UDP one bound (or -1: UDP is left alone), the TCP one listening.

    It lasts as long as the descriptor returned is open. Raises OSError: this kernel can't do that.
    """
    table = _bpf(_MAP_CREATE, struct.pack("=IIII", _SOCKMAP, 4, 4, 2), "make a socket map")
    program = -1
    try:
        for key, fd in ((0, udp), (1, tcp)):
            if fd < 0:
                continue
            key_buffer, value_buffer = ctypes.c_uint32(key), ctypes.c_uint32(fd)
            update = struct.pack("=IxxxxQQQ", table, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0)
            _bpf(_MAP_UPDATE, update, "put a socket in a map")
        code = _program(table, address, port)
        instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
        load = struct.pack(
            "=IIQQIIQII16sII", _SK_LOOKUP_PROGRAM, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence),  # noqa: E501
            0, 0, 0, 0, 0, b"runvm_steer", 0, _SK_LOOKUP_ATTACH,
        )  # fmt: skip
        program = _bpf(_PROG_LOAD, load, "load a BPF program")
        return _bpf(_LINK_CREATE, struct.pack("=IIII", program, netns, _SK_LOOKUP_ATTACH, 0), "attach a BPF program")
    finally:
        os.close(table)
        if program >= 0:
            os.close(program)


def _bpf(command: int, attributes: bytes, what: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTES)
    result = int(_libc.syscall(syscalls.number(_SYS_BPF), command, buffer, _ATTRIBUTES))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _program(table: int, address: str, port: int) -> bytes:
    """Assembled by hand; registers and codes as in the kernel's docs, bpf/standardization/instruction-set."""
    load, jump_unless, jump_if, go_on, store, mask = 0x61, 0x56, 0x16, 0x05, 0x63, 0x54
    copy, put, add, call, leave = 0xBF, 0xB7, 0x07, 0x85, 0x95
    end = 32767  # as an offset: to where `pass` begins
    lines = [
        (copy, 6, 1, 0, 0),  # r6 = the context
        (load, 2, 6, _FAMILY, 0),
        (jump_unless, 2, 0, end, socket.AF_INET),
        (load, 2, 6, _LOCAL_PORT, 0),
        (jump_unless, 2, 0, end, port) if port else (go_on, 0, 0, 0, 0),
        (load, 2, 6, _LOCAL_IP4, 0),
        (jump_if, 2, 0, 2, _ip4(address or "127.0.0.1")),
        # with an address that is asked for, all others end here
        (mask, 2, 0, 0, _ip4("0.0.0.0" if address else "255.0.0.0")),
        (jump_if, 2, 0, end, _ip4("0.0.0.0" if address else "127.0.0.0")),
        (load, 2, 6, _PROTOCOL, 0),
        (put, 3, 0, 0, 0),
        (jump_if, 2, 0, 2, socket.IPPROTO_UDP),
        (put, 3, 0, 0, 1),
        (jump_unless, 2, 0, end, socket.IPPROTO_TCP),
        (store, 10, 3, -4, 0),  # the key, on the stack
        (0x18, 1, 1, 0, table),  # r1 = the map, a double instruction
        (0, 0, 0, 0, 0),
        (copy, 2, 10, 0, 0),
        (add, 2, 0, 0, -4),
        (call, 0, 0, 0, _LOOKUP_ELEMENT),
        (0x15, 0, 0, end, 0),  # no such socket
        (copy, 7, 0, 0, 0),
        (copy, 1, 6, 0, 0),
        (copy, 2, 7, 0, 0),
        (put, 3, 0, 0, 0),
        (call, 0, 0, 0, _SK_ASSIGN),
        (copy, 1, 7, 0, 0),
        (call, 0, 0, 0, _SK_RELEASE),
        (put, 0, 0, 0, 1),  # pass: SK_PASS
        (leave, 0, 0, 0, 0),
    ]
    # jumps are relative to the next instruction
    return b"".join(
        struct.pack("=BBhi", code, to | source << 4, len(lines) - 3 - at if offset == end else offset, value)
        for at, (code, to, source, offset, value) in enumerate(lines)
    )


def _ip4(address: str) -> int:
    """As the program loads it: in the network's order."""
    return int(struct.unpack("=i", socket.inet_aton(address))[0])
