"""Examples of a property have no time limit each: the machine may have other things to do."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
