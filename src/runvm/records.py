"""NamedTuple, as typing has it, of which a class takes 10 µs to make and not 170.

A command makes a hundred such classes when it is imported and uses a few. typing.NamedTuple compiles a constructor for
each, and each annotation: 16 of the 110 ms of processor time that `runvm run` took, 9 of 65 of an `exec`. Type checkers
see typing's.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

_tuple = tuple.__new__


class _RecordType(type):
    """Makes the class: its annotations are the fields, in their order, and what is assigned to them the defaults."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _RecordType:
        fields = tuple(namespace.get("__annotations__", ()))
        defaults = {field: namespace[field] for field in fields if field in namespace}
        namespace.update({field: property(itemgetter(at)) for at, field in enumerate(fields)})
        namespace.update(__slots__=(), _fields=fields, _field_defaults=defaults, __match_args__=fields)
        return super().__new__(cls, name, bases, namespace)


class Record(tuple[Any, ...], metaclass=_RecordType):
    """What stands behind NamedTuple when the program runs; see collections.namedtuple for what each method does."""

    if TYPE_CHECKING:  # the metaclass sets them
        _fields: tuple[str, ...]
        _field_defaults: dict[str, Any]

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Raises TypeError where a field is missing, unknown, or given twice."""
        if named or len(values) != len(cls._fields):
            values = cls._complete(values, named)
        return _tuple(cls, values)

    @classmethod
    def _complete(cls, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        rest = cls._fields[len(values) :]
        if len(values) > len(cls._fields) or not named.keys() <= set(rest):
            wrong = [field for field in named if field not in rest] or "more values than fields"
            raise TypeError(f"{cls.__name__} has the fields {cls._fields} and was given {wrong}")
        given = {**cls._field_defaults, **named}
        try:
            return (*values, *[given[field] for field in rest])
        except KeyError as error:
            raise TypeError(f"{cls.__name__} lacks the field {error}") from None

    @classmethod
    def _make(cls, values: Iterable[Any]) -> Self:
        return cls(*values)

    def _replace(self, **named: Any) -> Self:
        return type(self)(**{**self._asdict(), **named})

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"


if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    NamedTuple = Record
