"""Links of the documentation lead somewhere, and its index names every page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.cli import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(LINK.findall(index))


def test_the_table_of_packages_says_what_they_say() -> None:
    rows = re.findall(r"^\| `([\w/]+)` \| (.*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    packages = {row: said for row, said in rows if (ROOT / row / "__init__.py").exists()}
    docstrings = {row: ast.get_docstring(ast.parse((ROOT / row / "__init__.py").read_text())) for row in packages}
    assert packages == {row: " ".join((text or "").split()) for row, text in docstrings.items()}
    assert len(packages) > 30
