"""jsontext.py: one member of a JSON text changes, everything else keeps its bytes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runvm.host import jsontext

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["runtimes", "a", "b", 'q"{}', "ü"]), VALUES, max_size=4)
INDENTS = st.sampled_from([None, 1, 2, 4, "\t"])
NEWLINES = st.sampled_from(["\n", "\r\n"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", '{\n    "r": {\n        "x": 1\n    }\n}'),
        ("{}\n", '{\n    "r": {\n        "x": 1\n    }\n}\n'),
        ("{\n}\n", '{\n    "r": {\n        "x": 1\n    }\n}\n'),
        ('{"a": [1,2]}', '{"a": [1,2], "r": {"x": 1}}'),
        ('{"a":1}\n', '{"a":1, "r": {"x": 1}}\n'),
        ('{\n  "a": [1,  2]\n}\n', '{\n  "a": [1,  2],\n  "r": {\n    "x": 1\n  }\n}\n'),
        ('{\n\t"a": 1\n}', '{\n\t"a": 1,\n\t"r": {\n\t\t"x": 1\n\t}\n}'),
        ('{\r\n  "a": 1\r\n}', '{\r\n  "a": 1,\r\n  "r": {\r\n    "x": 1\r\n  }\r\n}'),
        ('{\n  "r": {},\n  "z": 1\n}', '{\n  "r": {\n    "x": 1\n  },\n  "z": 1\n}'),
        ('{\n  "r": { "y": 2 }\n}', '{\n  "r": { "y": 2, "x": 1 }\n}'),
        ('{ "r": {"x" : 5, "y": 6} }', '{ "r": {"x" : 1, "y": 6} }'),
    ],
)
def test_a_member_is_added_in_the_style_of_the_document(text: str, expected: str) -> None:
    assert jsontext.set_member(text, ("r", "x"), 1) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"r": 1}', "{}"),
        ('{\n  "r": 1\n}\n', "{}\n"),
        ('{\n  "r": 1,\n  "z": 2\n}', '{\n  "z": 2\n}'),
        ('{\n  "a": 1,\n  "r": 2\n}', '{\n  "a": 1\n}'),
        ('{"a": 1}', '{"a": 1}'),
    ],
)
def test_a_member_is_removed_with_its_comma(text: str, expected: str) -> None:
    assert jsontext.remove_member(text, ("r",)) == expected


def test_what_is_no_object_on_the_way_is_named() -> None:
    with pytest.raises(TypeError, match="runtimes"):
        jsontext.set_member('{"runtimes": []}', ("runtimes", "runvm", "path"), "/x")


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    assert jsontext.set_member('{"a": 1, "a": 2}', ("a",), 3) == '{"a": 1, "a": 3}'


@given(document=DOCUMENTS, indent=INDENTS, newline=NEWLINES, value=VALUES)
def test_setting_means_what_it_says_and_removing_brings_the_rest_back(
    document: dict[str, Any], indent: Any, newline: str, value: Any
) -> None:
    """Any document in any style: the result means the document with that member; without it again, it is the same."""
    text = json.dumps(document, indent=indent).replace("\n", newline)
    after = jsontext.set_member(text, ("new",), value)
    assert json.loads(after) == {**document, "new": value}
    assert jsontext.set_member(after, ("new",), value) == after
    if document:
        assert jsontext.remove_member(after, ("new",)) == text
    else:
        assert json.loads(jsontext.remove_member(after, ("new",))) == {}
