"""What the annotations about warm starts may say."""

from __future__ import annotations

import pytest

from runvm.config import WARM, WARM_VOLUMES, load
from runvm.container import wishes
from runvm.container.wishes import Wish
from runvm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("/run/ready", Wish("/run/ready", 0, False)),
        ("3", Wish("", 3, False)),
        ("3600s", Wish("", 3600, False)),
        ("healthy", Wish("", 0, False)),
    ],
)
def test_a_path_or_seconds_or_a_health_check(text: str, wish: Wish) -> None:
    assert wishes.read({WARM: text}) == wish
    assert wishes.read({WARM: text, WARM_VOLUMES: "true"}) == wish._replace(volumes=True)


@pytest.mark.parametrize(
    "text", ["", "/", "//", "ready", "0", "0s", "s", "-1", "1.5", "3601", "99999", "²", "1 s", "Healthy", "healthy "]
)
def test_nothing_else(text: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        wishes.read({WARM: text})
    with pytest.raises(ConfigError, match="true or false"):
        wishes.read({WARM: "1", WARM_VOLUMES: text})


def test_they_are_no_settings() -> None:
    assert load(file="/nonexistent", annotations={WARM: "/ready", WARM_VOLUMES: "true"}) == load(file="/nonexistent")
