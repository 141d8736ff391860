"""The name of the symlink to the image that was built last: each architecture has one."""

from __future__ import annotations

from runvm.linux import architecture


def link(arch: str) -> str:
    """That of the setting `arch`: plain `current` for the host's own."""
    return f"current-{arch}" if architecture.is_foreign(arch) else "current"
