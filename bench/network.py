"""Later."""

from bench.runner import Bench

FAMILY = "network"


def run(bench: Bench) -> None:
    """Nothing yet."""
