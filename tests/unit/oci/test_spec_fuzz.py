"""Whatever config.json holds: a Spec or a SpecError of one line, never another exception."""

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runvm.errors import SpecError, UnsupportedError
from runvm.oci import spec

DATA = Path(__file__).parent / "data"
CONFIGS = [json.loads(path.read_text()) for path in [*(DATA / "callers").glob("*.json"), *DATA.glob("*.json")]]
for _config in CONFIGS:
    _config["root"]["path"] = "/"
    for _call in _config["linux"].get("seccomp", {}).get("syscalls", ()):
        del _call["names"][3:]  # hundreds of names would draw most of the changes
EXTRAS: dict[str, Any] = {
    "consoleSize": {"height": 1, "width": 1},
    "scheduler": {"policy": "SCHED_FIFO", "nice": 1, "flags": ["SCHED_FLAG_RECLAIM"]},
    "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1},
}

QUICK = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**16, 2**31, 2**32 - 1, 2**32, 2**63, 2**64]),
    st.floats(allow_nan=False),
    st.text(st.characters(), max_size=8),
    st.sampled_from(
        ["", "/", "..", "\0", "\ud800", "=", "a=b", "bind", "c", "pid", "user", "1.0.0", "SCMP_ACT_NOTIFY"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def spoilt_configs(draw: st.DrawFn) -> Any:
    """A real config.json with one to three of its values removed, replaced or repeated, at any depth."""
    config = copy.deepcopy(draw(st.sampled_from(CONFIGS)))
    config["process"].update(copy.deepcopy(draw(st.sampled_from([{}, EXTRAS]))))
    for _ in range(draw(st.integers(1, 3))):
        node: Any = config
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and draw(st.integers(0, 4)):
                node = node[key]
                continue
            change = draw(st.sampled_from(["replace", "remove", "repeat", "rename"]))
            if change == "remove":
                del node[key]
            elif change == "repeat" and isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            elif change == "rename" and isinstance(node, dict):
                node[draw(st.text(max_size=4))] = node[key]
            else:
                node[key] = draw(values)
            break
    return config


def check(data: bytes) -> None:
    """The property: a Spec that says the same when it is read again, or a short error."""
    try:
        loaded = spec.parse(data, bundle="/")
    except SpecError as error:
        text = str(error)
        assert text.startswith("config.json: ")
        assert "\n" not in text
        assert len(text) < 1500
        text.encode()
        return
    again = spec.parse(json.dumps(loaded.raw).encode(), bundle="/")
    assert again._replace(warnings=(), text=b"") == loaded._replace(warnings=(), text=b"")
    spec.host_labels(loaded)
    try:
        spec.unsupported(loaded)
    except UnsupportedError as error:
        assert "\n" not in str(error)


@QUICK
@given(spoilt_configs())
def test_a_spoilt_config(config: Any) -> None:
    check(json.dumps(config).encode())


@QUICK
@given(values)
@example([[[]]])
def test_any_json(value: Any) -> None:
    check(json.dumps(value).encode())


@QUICK
@given(st.binary(max_size=200))
@example(b'{"a":1e999}')
@example(b'{"a":' * 3000)
def test_any_bytes(data: bytes) -> None:
    check(data)


@QUICK
@given(st.data())
def test_a_cut_or_changed_file(data: st.DataObject) -> None:
    text = bytearray(json.dumps(data.draw(st.sampled_from(CONFIGS))).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text))


@QUICK
@given(values)
def test_any_process_or_resources(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        spec.load_resources(text)
    except SpecError as error:
        assert "\n" not in str(error)
    if isinstance(value, dict):
        try:
            spec.check_process(value, "process")
        except SpecError as error:
            assert "\n" not in str(error)
