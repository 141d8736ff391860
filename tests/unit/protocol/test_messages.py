"""Messages of one who isn't trusted."""

from __future__ import annotations

import pytest

from runvm.protocol import fields, messages

FROM_GUEST = messages.FROM_GUEST


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_depth_is_bounded(opening: bytes) -> None:
    """json reads nearly a thousand levels, and fails to write what it has read from further down the stack."""
    closing = {b"[": b"]"}.get(opening, b"}")

    def nested(depth: int) -> bytes:
        return b'{"t":"Done","n":1,"result":{"r":' + opening * depth + b"1" + closing * depth + b"}}"

    _, message = messages.decode(nested(20), FROM_GUEST)
    assert messages.encode(message, 1) == nested(20)
    for depth in (fields.MAX_DEPTH, 900, 100_000):
        with pytest.raises(messages.MessageError):
            messages.decode(nested(depth), FROM_GUEST)
