"""Pages that are made from the code are what the code says now; links between pages lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def test_the_protocols_page_is_current() -> None:
    """`make docs` writes it."""
    made = subprocess.run([ROOT / "packaging/protocol-page"], capture_output=True, text=True, check=True, timeout=30)
    assert (ROOT / "docs/protocol.md").read_text() == made.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
