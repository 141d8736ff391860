"""The quick NamedTuple does what typing's does."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest

from runvm.records import NamedTuple

SOURCE = Path(__file__).parents[2] / "src" / "runvm"


class Quick(NamedTuple):
    """A point."""

    x: int
    y: int = 2
    names: tuple[str, ...] = ()

    @property
    def far(self) -> bool:
        """A property of its own."""
        return self.x > 100


class Typings(typing.NamedTuple):
    """The same by typing."""

    x: int
    y: int = 2
    names: tuple[str, ...] = ()


class Nothing(NamedTuple):
    """No field."""


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 3), {}),
    ((1, 3, ("a",)), {}),
    ((), {"x": 1}),
    ((), {"y": 5, "x": 1}),
    ((1,), {"names": ("b",)}),
    ((), {}),
    ((), {"y": 1}),
    ((1, 2, (), 4), {}),
    ((1,), {"x": 1}),
    ((1,), {"z": 1}),
    ((1, 2, ()), {"z": 1}),
]


@pytest.mark.parametrize(("values", "named"), CALLS)
def test_a_constructor_takes_and_refuses_what_typings_does(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    try:
        theirs = Typings(*values, **named)
    except TypeError:
        with pytest.raises(TypeError, match="Quick"):
            Quick(*values, **named)
        return
    ours = Quick(*values, **named)
    assert tuple(ours) == tuple(theirs) and hash(ours) == hash(theirs)
    assert (ours.x, ours.y, ours.names) == tuple(theirs)
    assert repr(ours) == repr(theirs).replace("Typings", "Quick")
    assert ours._asdict() == theirs._asdict()
    assert tuple(ours._replace(y=9)) == tuple(theirs._replace(y=9))


def test_its_class_has_what_typings_has() -> None:
    for name in ("_fields", "_field_defaults", "__match_args__"):
        assert getattr(Quick, name) == getattr(Typings, name)
    assert typing.get_type_hints(Quick) == typing.get_type_hints(Typings)
    assert Quick._make([1, 2, ()]) == (1, 2, ())
    assert Nothing() == () and repr(Nothing()) == "Nothing()"


def test_a_value_is_unchangeable_and_has_no_other_attributes() -> None:
    value: Any = Quick(101)
    assert value.far
    with pytest.raises(AttributeError):
        value.x = 3
    with pytest.raises(AttributeError):
        value.other = 3
    with pytest.raises(TypeError):
        value._replace(other=3)


def test_a_pattern_matches_by_position() -> None:
    match Quick(1, 5):
        case Quick(x, y):
            assert (x, y) == (1, 5)


def test_no_module_uses_typings() -> None:
    for path in SOURCE.rglob("*.py"):
        if path.name != "records.py":
            assert not any(
                line.startswith("from typing import") and "NamedTuple" in line for line in path.read_text().splitlines()
            ), f"{path} pays typing's price for its classes"
