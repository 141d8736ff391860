"""Policy routing rules as typed objects: the host reads them, the guest sets them.

Source: linux/fib_rules.h.
"""

from __future__ import annotations

import errno
import struct
from socket import AF_INET, AF_INET6

from runvm.linux import netlink
from runvm.linux.netlink import F_DUMP, NetlinkError, Socket, attribute, number, unpack
from runvm.linux.routing import prefix_bytes, prefix_text, short, unless
from runvm.records import NamedTuple

_RULE = struct.Struct("=BBBBBBBBI")
_NEW_RULE, _DELETE_RULE, _GET_RULE = 32, 33, 34
_ADD = netlink.F_CREATE | netlink.F_EXCLUSIVE
_FAMILIES = (AF_INET, AF_INET6)
_INVERT = 0x2  # FIB_RULE_INVERT

# FRA_*
_RULE_TO, _RULE_FROM, _RULE_IN, _RULE_PRIORITY, _RULE_MARK, _RULE_UNLESS, _RULE_TABLE = 1, 2, 3, 6, 10, 14, 15
_RULE_MASK, _RULE_OUT, _RULE_PADDING, _RULE_PROTOCOL = 16, 17, 18, 21
_RULE_EXTRA = frozenset((4, 13, 20, 22, 23, 24))
"""FRA_GOTO, _SUPPRESS_IFGROUP, _UID_RANGE, _IP_PROTO, _SPORT_RANGE, _DPORT_RANGE: passed on as they are."""
_RULE_KNOWN = frozenset((
    _RULE_TO, _RULE_FROM, _RULE_IN, _RULE_PRIORITY, _RULE_MARK, _RULE_UNLESS, _RULE_TABLE,
    _RULE_MASK, _RULE_OUT, _RULE_PADDING, _RULE_PROTOCOL, *_RULE_EXTRA,
))  # fmt: skip
_RULE_NOTHING = {13: b"\xff" * 4, 28: b"\xff" * 2, 29: b"\xff" * 2}
"""FRA_SUPPRESS_IFGROUP, _SPORT_MASK, _DPORT_MASK (Linux 6.14) as rules without any have them."""


class Rule(NamedTuple):
    """A policy routing rule; '' and 0: doesn't look at that. *unless_prefix* is suppress_prefixlength, -1 for none,
    *extra* has (attribute, its bytes in hexadecimal) of what is passed on as it is."""

    family: int
    priority: int
    action: int
    table: int
    invert: bool
    source: str
    destination: str
    tos: int
    input: str
    output: str
    mark: int
    mask: int
    unless_prefix: int
    extra: tuple[tuple[int, str], ...] = ()


def rules(sock: Socket, notes: list[str] | None = None) -> list[Rule]:
    """The policy routing rules, the kernel's own too, but for those that look at more than a Rule can say, of which
    *notes* gets a line each. Raises NetlinkError."""
    found = []
    for message in sock.query(_GET_RULE, F_DUMP, _RULE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), "read the routing rules"):
        family, to_prefix, from_prefix, tos, table, _, _, action, flags = unpack(_RULE, message)
        values = netlink.attributes(message.body, _RULE.size)
        if family not in _FAMILIES:
            continue
        values = {key: value for key, value in values.items() if _RULE_NOTHING.get(key) != value}
        if values.keys() - _RULE_KNOWN:  # without what it looks at, it would catch more than it should
            if notes is not None:
                priority = netlink.read_number(values, _RULE_PRIORITY)
                kinds = ", ".join(str(kind) for kind in sorted(values.keys() - _RULE_KNOWN))
                notes.append(f"routing rule {priority} is not handed over: it has attributes of type {kinds}")
            continue
        unless = netlink.read_number(values, _RULE_UNLESS, 0xFFFFFFFF)
        found.append(Rule(
            family=family,
            priority=netlink.read_number(values, _RULE_PRIORITY),
            action=action,
            table=netlink.read_number(values, _RULE_TABLE, table),
            invert=bool(flags & _INVERT),
            source=prefix_text(family, values.get(_RULE_FROM), from_prefix),
            destination=prefix_text(family, values.get(_RULE_TO), to_prefix),
            tos=tos,
            input=netlink.read_text(values, _RULE_IN),
            output=netlink.read_text(values, _RULE_OUT),
            mark=netlink.read_number(values, _RULE_MARK),
            mask=netlink.read_number(values, _RULE_MASK),
            unless_prefix=-1 if unless == 0xFFFFFFFF else unless,
            extra=tuple((key, values[key].hex()) for key in sorted(values.keys() & _RULE_EXTRA)),
        ))  # fmt: skip
    return found


def add_rule(sock: Socket, rule: Rule) -> None:
    """Add a rule; that it is there already is no error. Raises NetlinkError."""
    unless((errno.EEXIST,), sock, _NEW_RULE, _ADD, _rule_body(rule), f"add routing rule {rule.priority}")


def delete_rule(sock: Socket, rule: Rule) -> None:
    """Delete a rule; that it has gone already is no error. Raises NetlinkError."""
    unless((errno.ENOENT,), sock, _DELETE_RULE, 0, _rule_body(rule), f"delete routing rule {rule.priority}")


def _rule_body(rule: Rule) -> bytes:
    source, from_prefix = prefix_bytes(rule.family, rule.source)
    destination, to_prefix = prefix_bytes(rule.family, rule.destination)
    flags = _INVERT if rule.invert else 0
    body = _RULE.pack(rule.family, to_prefix, from_prefix, rule.tos, short(rule.table), 0, 0, rule.action, flags)
    body += number(_RULE_PRIORITY, rule.priority) + number(_RULE_TABLE, rule.table)
    if source:
        body += attribute(_RULE_FROM, source)
    if destination:
        body += attribute(_RULE_TO, destination)
    if rule.input:
        body += netlink.text(_RULE_IN, rule.input)
    if rule.output:
        body += netlink.text(_RULE_OUT, rule.output)
    if rule.mark or rule.mask:
        body += number(_RULE_MARK, rule.mark) + number(_RULE_MASK, rule.mask)
    if rule.unless_prefix >= 0:
        body += number(_RULE_UNLESS, rule.unless_prefix)
    for key, value in rule.extra:
        if key not in _RULE_EXTRA:
            raise NetlinkError(errno.EINVAL, f"a routing rule with an attribute of type {key}")
        body += attribute(key, _hex_bytes(value))
    return body


def _hex_bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise NetlinkError(errno.EINVAL, f"{text!r} isn't hexadecimal") from None
