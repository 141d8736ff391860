"""CHANGELOG.md as deb-changelog(5) has it, for the package's changelog.gz: changelog.py FILE VERSION MAINTAINER EPOCH.

What isn't released yet counts as VERSION's, at EPOCH (seconds since 1970).
"""

import datetime
import email.utils
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple


class Release(NamedTuple):
    """A version's heading and its points."""

    version: str
    date: str
    points: list[str]


def read(text: str, version: str, today: str) -> Iterator[Release]:
    """The releases of a changelog's *text*, the latest first, those without a point left out."""
    release = None
    for line in text.splitlines():
        heading = re.fullmatch(r"## (?:Unreleased|(\S+) - (\d{4}-\d\d-\d\d))", line)
        if heading is not None:
            if release is not None and release.points:
                yield release
            release = Release(heading[1] or version, heading[2] or today, [])
        elif release is not None and line.startswith("- "):
            release.points.append(line[2:])
        elif release is not None and line.startswith("  ") and release.points:
            release.points[-1] += f" {line.strip()}"
    if release is not None and release.points:
        yield release


def merge(releases: Iterator[Release]) -> list[Release]:
    """*releases* with neighbours of one version made one: what came after a release is packaged under its version."""
    merged: list[Release] = []
    for release in releases:
        if merged and merged[-1].version == release.version:
            merged[-1].points.extend(release.points)
        else:
            merged.append(release)
    return merged


def render(release: Release, maintainer: str) -> str:
    """A stanza of deb-changelog(5)."""
    lines = [f"runvm ({release.version}) unstable; urgency=medium", ""]
    for point in release.points:
        lines += textwrap.wrap(point, 78, initial_indent="  * ", subsequent_indent="    ", break_on_hyphens=False)
    year, month, day = map(int, release.date.split("-"))
    when = email.utils.format_datetime(datetime.datetime(year, month, day, tzinfo=datetime.UTC))
    return "\n".join([*lines, "", f" -- {maintainer}  {when}", ""])


def main(file: str, version: str, maintainer: str, epoch: str) -> None:
    """Print the whole changelog."""
    today = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).strftime("%Y-%m-%d")
    with open(file, encoding="utf-8") as source:
        releases = merge(read(source.read(), version, today))
    sys.stdout.write("\n".join(render(release, maintainer) for release in releases))


if __name__ == "__main__":
    main(*sys.argv[1:])
