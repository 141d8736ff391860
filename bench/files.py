"""Later."""

from bench.runner import Bench

FAMILY = "files"


def run(bench: Bench) -> None:
    """Nothing yet."""
