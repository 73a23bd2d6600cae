"""Links between the pages of this repository lead to files and headings that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    str(page.relative_to(REPOSITORY)) for place in ("", "docs", "bench") for page in (REPOSITORY / place).glob("*.md")
)
#: A page that is longer is split by what a person wants to do.
MOST_LINES = 300
_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")


def prose(text: str) -> str:
    """The page without its blocks of code, in which a bracket is no link."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """The headings as a forge names them: lower case, punctuation gone, a dash for each blank."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_link_of_a_page_leads_somewhere(page: str) -> None:
    path = REPOSITORY / page
    for file, anchor in _LINK.findall(prose(path.read_text())):
        target = path.parent / file if file else path
        assert target.exists(), f"{page}: {file}"
        assert not anchor or anchor in anchors(target.read_text()), f"{page}: {file}#{anchor}"


def test_every_page_of_the_documents_is_found_from_the_first_one() -> None:
    named = {file for file, _ in _LINK.findall((REPOSITORY / "docs/README.md").read_text())}
    pages = {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert pages <= named


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_page_is_short_enough_to_be_read(page: str) -> None:
    assert len((REPOSITORY / page).read_text().splitlines()) <= MOST_LINES


def test_bad_link_and_bad_anchor_are_seen() -> None:
    assert _LINK.findall("[a](b.md#c) [d](#e) [f](https://g/h.md)") == [("b.md", "c"), ("", "e")]
    assert anchors("# The `fence`, here\n```\n# no heading\n```\n") == {"the-fence-here"}


def test_map_names_only_modules_that_are_there() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text()
    rooms = {path.name for path in (REPOSITORY / "watcher").iterdir() if path.is_dir()}
    named = [name for name in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", text) if name.partition("/")[0] in rooms]
    assert len(named) > 50
    assert [name for name in named if not (REPOSITORY / "watcher" / name).exists()] == []
