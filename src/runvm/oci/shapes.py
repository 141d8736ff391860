"""Rules that one value of a JSON file keeps or breaks: its type and range, of an array's items, of an object's fields.

`oci.schema` makes config.json's shape of them. The path of a bad field is put together on the way up, so that a good
file pays nothing for it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Rule = Callable[["Json"], None]

Json = Any  # what json.loads returns; the rules are what narrows it
JsonObject = dict[str, Json]

_MAX_SHOWN = 80


class Invalid(Exception):
    """A value breaks its rule; *path* is from the value that was checked down to the bad one ('.args[1]')."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path


def shown(value: Json) -> str:
    """*value* for a message: one line, ASCII, and short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    line = json.dumps(value[:_MAX_SHOWN] if isinstance(value, str) else value)
    cut = len(line) > _MAX_SHOWN or isinstance(value, str) and len(value) > _MAX_SHOWN
    return line[:_MAX_SHOWN] + "..." if cut else line


def expected(what: str, value: Json) -> Invalid:
    """The error for a value of the wrong type."""
    return Invalid(f"expected {what}, got {shown(value)}")


# --- rules: each raises Invalid, or returns


def boolean(value: Json) -> None:
    """True or false."""
    if type(value) is not bool:
        raise expected("true or false", value)


def any_text(value: Json) -> None:
    """A string that can be written as UTF-8; NUL bytes are allowed (annotations never reach a system call)."""
    if type(value) is not str:
        raise expected("a string", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Invalid("holds half of a surrogate pair, which is no character") from None


def text(value: Json) -> None:
    """A string that a system call can take: no NUL byte in it, where C would cut it short."""
    any_text(value)
    if "\0" in value:
        raise Invalid("holds a NUL byte")


def nonempty(value: Json) -> None:
    """A string that says something."""
    text(value)
    if not value:
        raise Invalid("must not be empty")


def absolute(value: Json) -> None:
    """A path from the root."""
    nonempty(value)
    if value[0] != "/":
        raise Invalid(f"must be an absolute path, got {shown(value)}")


def integer(low: int, high: int) -> Rule:
    """A whole number from *low* to *high*; 1.0 is not one, as in runc."""

    def check(value: Json) -> None:
        if type(value) is not int:
            raise expected("an integer", value)
        if not low <= value <= high:
            raise Invalid(f"must be from {low} to {high}, got {shown(value)}")

    return check


def choice(names: Iterable[str], what: str) -> Rule:
    """One of *names*; *what* says of which kind they are."""
    known = tuple(names)

    def check(value: Json) -> None:
        text(value)
        if value not in known:
            raise Invalid(f"unknown {what} {shown(value)} (known: {', '.join(name for name in known if name)})")

    return check


def array(rule: Rule, *, at_least: int = 0) -> Rule:
    """A list of values that all keep *rule*."""

    def check(value: Json) -> None:
        if type(value) is not list:
            raise expected("an array", value)
        if len(value) < at_least:
            raise Invalid("must not be empty")
        for index, item in enumerate(value):
            try:
                rule(item)
            except Invalid as bad:
                bad.path = f"[{index}]{bad.path}"
                raise

    return check


def mapping(rule: Rule, *, key: Rule = text) -> Rule:
    """An object with names of the caller's choice, which keep the rule *key*, for values that keep *rule*."""

    def check(value: Json) -> None:
        if type(value) is not dict:
            raise expected("an object", value)
        for name, item in value.items():
            try:
                key(name)
                rule(item)
            except Invalid as bad:
                bad.path = f"[{shown(name)}]{bad.path}"
                raise

    return check


def table(fields: dict[str, Rule], required: tuple[str, ...] = ()) -> Rule:
    """An object with the named *fields*; others are ignored.

    null means that a field is absent, as it does for Go's JSON: such a field is taken out of the object, so that no
    reader after this one meets it.
    """

    def check(value: Json) -> None:
        if type(value) is not dict:
            raise expected("an object", value)
        for name, rule in fields.items():
            item = value.get(name)
            if item is not None:
                try:
                    rule(item)
                except Invalid as bad:
                    bad.path = f".{name}{bad.path}"
                    raise
            elif name in required:
                raise Invalid("must be set", f".{name}")
            elif name in value:
                del value[name]

    return check


# --- numbers

INT32 = integer(-(2**31), 2**31 - 1)
INT64 = integer(-(2**63), 2**63 - 1)
UINT16 = integer(0, 2**16 - 1)
UINT32 = integer(0, 2**32 - 1)
UINT64 = integer(0, 2**64 - 1)
# (uint32)-1 means "leave it as it is" to setresuid(2): a process that asked for it would stay root
ID = integer(0, 2**32 - 2)

TEXTS = array(text)
