"""Annotations that are properties of a scope: GVariant's text, and what busctl gets for it."""

import pytest

from runvm.cgroup import unit_properties
from runvm.errors import SpecError


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("KillSignal", "37", ("KillSignal", "i", "37")),
        ("TimeoutStopUSec", "uint64 10000000", ("TimeoutStopUSec", "t", "10000000")),
        ("TimeoutStopSec", "90", ("TimeoutStopUSec", "t", "90000000")),
        ("TimeoutStopSec", "0.5", ("TimeoutStopUSec", "t", "500000")),
        ("RuntimeMaxSec", "@u 3", ("RuntimeMaxUSec", "t", "3000000")),
        ("CollectMode", "'inactive-or-failed'", ("CollectMode", "s", "inactive-or-failed")),
        ("DefaultDependencies", " true ", ("DefaultDependencies", "b", "true")),
        ("After", "['crio.service', \"a b\"]", ("After", "as", "2", "crio.service", "a b")),
        ("Before", "@as []", ("Before", "as", "0")),
        ("Description", r'"it\'s \"é\"\u00e9\n"', ("Description", "s", 'it\'s "é"é\n')),
        ("Nice", "-5", ("Nice", "i", "-5")),
        ("UMask", "uint32 0022", ("UMask", "u", "18")),
        ("IOWeight", "uint64 0x64", ("IOWeight", "t", "100")),
        ("Sec", "1", ("Sec", "i", "1")),
        ("ABSec", "1", ("ABSec", "i", "1")),
        ("Share", "double 1.5", ("Share", "d", "1.5")),
    ],
)
def test_a_value_with_its_type(name: str, text: str, wanted: tuple[str, ...]) -> None:
    annotations = {"com.example": "x", f"org.systemd.property.{name}": text}
    assert unit_properties.of(annotations) == [wanted]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("Ab", "1", "name incorrect: too short"),
        ("Kill_Signal", "1", "name incorrect: contains non-alphabetic character"),
        ("KillSignal", "SIGKILL", "value parse error: expected"),
        ("KillSignal", "", "value parse error: expected"),
        ("KillSignal", "4294967296", "value parse error: out of range"),
        ("Weight", "uint64 -1", "value parse error: out of range"),
        ("TimeoutStopSec", "'5'", "value parse error: not a number"),
        ("TimeoutStopSec", "-5", "value parse error: out of range"),
        ("Description", "'open", "value parse error: expected"),
        ("Description", "uint64 'x'", "value parse error: it isn't of the type"),
        ("Nice", "string 5", "value parse error: it isn't of the type"),
        ("DeviceAllow", "[('/dev/null', 'rw')]", "value parse error: expected"),
        ("Before", "[]", "value parse error: expected"),
        ("Description", r"'\u0000'", "value parse error: no such character"),
        ("Description", "'\0'", "value parse error: no such character"),
    ],
)
def test_what_is_refused_is_named(name: str, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        unit_properties.of({f"org.systemd.property.{name}": text})
    assert str(caught.value).startswith(f"annotation org.systemd.property.{name}={text}: ")
