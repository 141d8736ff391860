"""The namespaces that tests of a container's network begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from unit.network.namespaces import Namespace, attached

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def outside() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def box(outside: Namespace) -> Iterator[Namespace]:
    namespace = attached(outside)
    yield namespace
    namespace.close()
