"""Later."""

from bench.runner import Bench

FAMILY = "density"


def run(bench: Bench) -> None:
    """Nothing yet."""
