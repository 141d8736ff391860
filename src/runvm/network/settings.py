"""The settings of a container's network namespace on the host that the guest has to take over."""

from __future__ import annotations

import os

from runvm.protocol.net_settings import CONGESTION, NAMESPACE_SETTINGS, PORT_RANGE, USUAL, plain

_MAX_VALUE = 256
_FORWARD, _ALL_REDIRECTS = "ipv4/ip_forward", "ipv4/conf/all/accept_redirects"


def congestion() -> str:
    """The TCP congestion control of the namespace that the caller is in: a new namespace gets the host's."""
    root = os.open("/proc/sys/net", os.O_PATH | os.O_CLOEXEC)
    try:
        return _read(root, CONGESTION) or ""
    finally:
        os.close(root)


def read(usual_congestion: str) -> tuple[tuple[str, str], ...]:
    """The settings of the namespace that the caller is in: NAMESPACE_SETTINGS, and what differs from USUAL.

    Half a millisecond, on the way of each start. The range of ports isn't read: it is runvm's own by then (tap.wire).
    """
    root = os.open("/proc/sys/net", os.O_PATH | os.O_CLOEXEC)
    try:
        values = {}
        for name in NAMESPACE_SETTINGS:
            value = _read(root, name)
            if value is not None:
                values[name] = value
        usual = dict(USUAL)
        if values.get(_FORWARD) == "1":  # the kernel switches it off with forwarding, the guest's does so too
            usual[_ALL_REDIRECTS] = ("0",)
        for name, known in usual.items():
            value = None if name == PORT_RANGE else _read(root, name)
            if value is not None and value not in known and (name != CONGESTION or value != usual_congestion):
                values[name] = value
    finally:
        os.close(root)
    return tuple(values.items())


def _read(root: int, name: str) -> str | None:
    """A file; None where this kernel has none of that name, or more is in it than can be told."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        return None
    try:
        data = os.read(fd, _MAX_VALUE + 1)
    finally:
        os.close(fd)
    return plain(data.decode()) if len(data) <= _MAX_VALUE else None
