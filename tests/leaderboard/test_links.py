"""No link inside the leaderboards, the documents and the README leads nowhere."""

import functools
import html
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "leaderboards").rglob("*.md")),
    *sorted((ROOT / "leaderboards").rglob("*.html")),
]


def links_of(text, is_html):
    """The targets of a page's links and pictures; in Markdown those outside of code."""
    if is_html:
        text = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
        return [html.unescape(link) for link in re.findall(r'\b(?:href|src)="([^"]*)"', text)]
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    text = re.sub(r"`[^`\n]*`(?!\])", "code", text)
    return re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r'\b(?:href|src)="([^"]*)"', text)


@functools.cache  # a page that links to itself a thousand times is read once
def anchors_of(path):
    """Where a fragment may lead: ids of HTML; headings of Markdown as GitHub names them."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        return set(re.findall(r'\bid="([^"]*)"', text))
    if path.suffix != ".md":
        return set()
    found = set(re.findall(r'<a (?:id|name)="([^"]*)"', text))
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = 0
        while (name if not number else f"{name}-{number}") in found:
            number += 1
        found.add(name if not number else f"{name}-{number}")
    return found


def dead(page, links):
    """The links of a page that lead nowhere, with why."""
    found = []
    for link in links:
        if re.match(r"[a-z][a-z0-9+.-]*:", link):  # another site, which is not asked
            continue
        where, _, fragment = link.partition("#")
        target = (page.parent / unquote(where)).resolve() if where else page
        if not target.exists():
            found.append(f"{link}: no such file")
        elif fragment and target.is_file() and unquote(fragment) not in anchors_of(target):
            found.append(f"{link}: no such place")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    links = links_of(page.read_text(encoding="utf-8"), page.suffix == ".html")
    assert dead(page, links) == []


def test_dead_links_are_found(tmp_path):
    page, other = tmp_path / "a.md", tmp_path / "b.md"
    other.write_text("# One thing, & another\n\n## Twice\n\n## Twice\n")
    text = (
        "[x](b.md#one-thing--another) [y](b.md#twice-1) [z](b.md#twice-2) ![p](p.png)"
        " [w](https://elsewhere.test/x) `[code](nowhere.md)`\n\n    [code](nowhere.md)\n"
    )
    page.write_text(text)
    assert dead(page, links_of(text, False)) == [
        "b.md#twice-2: no such place",
        "p.png: no such file",
    ]
    site = tmp_path / "c.html"
    site.write_text('<a id="here" href="#here">x</a><a href="#there">y</a><img src="p%20q.png">')
    (tmp_path / "p q.png").touch()
    assert dead(site, links_of(site.read_text(), True)) == ["#there: no such place"]


def test_the_pages_of_the_boards_are_among_them():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"leaderboards/index.html", "leaderboards/pictures/testbed.html", "README.md"} <= names
