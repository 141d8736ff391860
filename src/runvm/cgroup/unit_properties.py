"""Properties of a scope's that annotations ask for: `org.systemd.property.NAME`, a value in GVariant's text format
(docs.gtk.org/glib/gvariant-text-format.html), as runc and crun take them. Podman gives KillSignal and
TimeoutStopUSec so.
"""

from __future__ import annotations

import re

from runvm.errors import SpecError

Property = tuple[str, ...]
"""A unit's property as busctl takes it: name, type, values."""
PREFIX = "org.systemd.property."
_KEYWORDS = {
    "boolean": "b",
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "int64": "x",
    "uint64": "t",
    "double": "d",
    "string": "s",
}
_BITS = {"y": (0, 8), "n": (1, 16), "q": (0, 16), "i": (1, 32), "u": (0, 32), "x": (1, 64), "t": (0, 64)}
"""Whether it is signed, and its bits."""
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_STRING = re.compile(_QUOTED, re.DOTALL)
_STRINGS = re.compile(rf"\[\s*(?:(?:{_QUOTED})\s*(?:,\s*(?:{_QUOTED})\s*)*)?\]", re.DOTALL)
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]{1,16})|(0[0-7]{0,22})|([1-9][0-9]{0,19}))")
_DOUBLE = re.compile(r"[-+]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_CONTROLS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SECONDS = re.compile(r"(.*[a-z])Sec")
_USEC = 1_000_000


def of(annotations: dict[str, str]) -> list[Property]:
    """What *annotations* ask for. Raises SpecError, which names the annotation, for a name or a value that is none, or
    one of another type than systemd's properties of scopes have."""
    found = []
    for key, text in annotations.items():
        if key.startswith(PREFIX):
            try:
                found.append(_property(key[len(PREFIX) :], text))
            except ValueError as error:
                raise SpecError(f"annotation {key}={text}: {error}") from None
    return found


def _property(name: str, text: str) -> Property:
    if len(name) < 3:
        raise ValueError("name incorrect: too short")
    if not (name.isascii() and name.isalpha()):
        raise ValueError("name incorrect: contains non-alphabetic character")
    kind, values = _parse(text.strip())
    seconds = _SECONDS.fullmatch(name)
    if seconds is not None:
        # documented with Sec, known on the bus with USec
        if kind not in (*_BITS, "d"):
            raise ValueError("value parse error: not a number")
        count = int(float(values[0]) * _USEC) if kind == "d" else int(values[0]) * _USEC
        if not 0 <= count < 1 << 64:
            raise ValueError("value parse error: out of range")
        return f"{seconds[1]}USec", "t", str(count)
    return name, kind, *values


def _parse(text: str) -> tuple[str, tuple[str, ...]]:
    """Type and values as busctl takes them. Raises ValueError."""
    asked = re.match(r"(?:@([a-z]+)|([a-z0-9]+))\s+(?=\S)", text)
    kind = ""
    if asked is not None:
        kind, text = asked[1] or _KEYWORDS.get(asked[2], "?"), text[asked.end() :]
    if text in ("true", "false"):
        return _checked(kind, "b"), (text,)
    if _STRING.fullmatch(text):
        return _checked(kind, "s"), (_unquoted(text),)
    if _STRINGS.fullmatch(text) and (kind or text.strip("[] \t\n")):  # an empty list without a type could be any
        each = [_unquoted(one) for one in _STRING.findall(text)]
        return _checked(kind, "as"), (str(len(each)), *each)
    integer = _INTEGER.fullmatch(text)
    if integer is not None and kind != "d":
        return _integer(kind or "i", integer)
    if _DOUBLE.fullmatch(text):
        return _checked(kind, "d"), (text,)
    raise ValueError(
        "value parse error: expected a boolean, a number, a quoted string or a list of these, with its type before it"
        " where that isn't int32 (uint64 5)"
    )


def _checked(asked: str, kind: str) -> str:
    if asked and asked != kind:
        raise ValueError(f"value parse error: it isn't of the type that it names ({kind} is)")
    return kind


def _integer(kind: str, text: re.Match[str]) -> tuple[str, tuple[str, ...]]:
    if kind not in _BITS:
        raise ValueError("value parse error: it isn't of the type that it names (a number is)")
    sign, hexadecimal, octal, decimal = text.groups()
    number = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    number = -number if sign == "-" else number
    signed, bits = _BITS[kind]
    if not -(signed << bits - 1) <= number < 1 << (bits - signed):
        raise ValueError("value parse error: out of range")
    return kind, (str(number),)


def _unquoted(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = match[1] or match[2]
        if code:
            number = int(code, 16)
            if not 0 < number < 0x110000 or 0xD800 <= number < 0xE000:
                raise ValueError("value parse error: no such character")
            return chr(number)
        return _CONTROLS.get(match[3], match[3])

    value = _ESCAPE.sub(character, text[1:-1])
    if "\0" in value:
        raise ValueError("value parse error: no such character")
    return value
