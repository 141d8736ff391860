"""Changes one member of a JSON document in its text, so that everything else keeps its bytes; for host.docker."""

from __future__ import annotations

import json

from runvm.records import NamedTuple

_SPACE = " \t\r\n"
_DEFAULT_INDENT = "    "


class JsonMember(NamedTuple):
    """A key and its value's place in the text: *start* is the key's quote, *at* and *end* enclose the value."""

    key: str
    start: int
    at: int
    end: int


def set_member(text: str, path: tuple[str, ...], value: object) -> str:
    """*text*, a valid JSON object, with the member at *path* set to *value*; objects on the way are made where missing.

    Raises: TypeError where something on the way is not an object.
    """
    at, depth = _skip(text, 0), 0
    while True:
        found = _find(text, at, path[depth])
        if found is None:
            for key in reversed(path[depth + 1 :]):
                value = {key: value}
            return _insert(text, at, path[depth], value)
        if depth == len(path) - 1:
            if json.loads(text[found.at : found.end]) == value:
                return text
            return text[: found.at] + _render(text, found.at, value) + text[found.end :]
        at, depth = found.at, depth + 1
        if text[at] != "{":
            raise TypeError(".".join(path[:depth]))


def remove_member(text: str, path: tuple[str, ...]) -> str:
    """*text* without the member at *path*; unchanged if there is none."""
    at = _skip(text, 0)
    for key in path[:-1]:
        found = _find(text, at, key)
        if found is None or text[found.at] != "{":
            return text
        at = found.at
    members, close = _members(text, at)
    for index, member in reversed(list(enumerate(members))):
        if member.key != path[-1]:
            continue
        if len(members) == 1:
            return text[: at + 1] + text[close:]
        if index == len(members) - 1:
            return text[: members[index - 1].end] + text[member.end :]
        return text[: member.start] + text[members[index + 1].start :]
    return text


def _find(text: str, at: int, key: str) -> JsonMember | None:
    """The member *key* of the object at *at*; of several the last, which is the one that counts for JSON readers."""
    return next((member for member in reversed(_members(text, at)[0]) if member.key == key), None)


def _members(text: str, at: int) -> tuple[list[JsonMember], int]:
    """The members of the object whose brace is at *at*, and where its closing brace is."""
    decoder = json.JSONDecoder()
    members: list[JsonMember] = []
    position = _skip(text, at + 1)
    while text[position] != "}":
        start = position
        key, position = decoder.raw_decode(text, start)
        value_at = _skip(text, _skip(text, position) + 1)  # + 1: the colon
        _, end = decoder.raw_decode(text, value_at)
        members.append(JsonMember(key, start, value_at, end))
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return members, position


def _insert(text: str, at: int, key: str, value: object) -> str:
    members, close = _members(text, at)
    member = json.dumps(key) + ": "
    if members:
        lead = text[at + 1 : members[0].start]
        end = members[-1].end
        lead = lead if "\n" in lead else lead or " "
        return text[:end] + "," + lead + member + _render(text, members[0].start, value) + text[end:]
    if "\n" not in text.strip() and text.strip() != "{}":  # a document in one line stays one
        return text[: at + 1] + member + json.dumps(value) + text[close:]
    newline, outer = _newline(text), _indent_at(text, at)
    inner = outer + _unit(text)
    rendered = json.dumps(value, indent=_unit(text)).replace("\n", newline + inner)
    return text[: at + 1] + newline + inner + member + rendered + newline + outer + text[close:]


def _render(text: str, beside: int, value: object) -> str:
    """*value* in the document's style, as it is written in the line of position *beside*."""
    if "\n" not in text.strip():
        return json.dumps(value)
    return json.dumps(value, indent=_unit(text)).replace("\n", _newline(text) + _indent_at(text, beside))


def _unit(text: str) -> str:
    """One step of the document's indentation: that of its first member."""
    at = _skip(text, 0)
    members, _ = _members(text, at)
    lead = text[at + 1 : members[0].start] if members else ""
    return lead.rpartition("\n")[2] if "\n" in lead else _DEFAULT_INDENT


def _indent_at(text: str, position: int) -> str:
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position
