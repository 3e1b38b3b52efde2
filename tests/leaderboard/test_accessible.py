"""What keyboards and screen readers need of every page, by rules that a parser can check: names,
headings, captions, and contrast of text.

A check of the pages by axe-core in a browser found nothing that these rules do not ask; they keep
it that way.
"""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from test_experiments_page import record as experiment

from bench.leaderboard import experiments_page
from bench.leaderboard.experiments import make_experiment_boards
from bench.leaderboard.leaderboard import make_pages
from bench.leaderboard.report import page as report
from bench.leaderboard.templating import package_file
from bench.records.record import load_records

RECORDS = Path(__file__).parents[2] / "leaderboards" / "records"
VOID = {"meta", "input", "img", "br", "wbr", "link", "hr"}
CONTROLS = {"input", "select", "button", "output"}


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent = tag, dict(attributes), parent
        self.children, self.words = [], ""

    def below(self):
        for child in self.children:
            yield child
            yield from child.below()

    def above(self):
        element = self.parent
        while element:
            yield element
            element = element.parent

    def text(self):
        return (self.words + "".join(child.text() for child in self.children)).strip()

    def __repr__(self):
        return f"<{self.tag} {self.attributes}>"


class Tree(HTMLParser):
    """The elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.root = self.here = Element("", {}, None)
        self.feed(text)
        self.close()
        self.all = list(self.root.below())

    def handle_starttag(self, tag, attributes):
        element = Element(tag, attributes, self.here)
        self.here.children.append(element)
        if tag not in VOID:
            self.here = element

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.here = self.here.parent

    def handle_endtag(self, tag):
        self.here = self.here.parent

    def handle_data(self, data):
        self.here.words += data

    def of(self, *tags):
        return [element for element in self.all if element.tag in tags]


def made():
    pages = make_pages(RECORDS)[0]
    found = {name: text.decode() for name, text in pages.items() if name.endswith(".html")}
    found["report"] = report(load_records(RECORDS)[0][0])
    (board,) = make_experiment_boards([experiment()], [])
    return found | {"experiment": experiments_page.html(board)}


@pytest.fixture(scope="module")
def trees():
    return {name: Tree(text) for name, text in made().items()}


def test_the_pages_are_all_there(trees):
    assert {"index.html", "testbed.html", "pictures/testbed.html", "detectors-testbed.html"} <= {
        *trees
    }


def test_a_page_has_a_language_a_title_one_heading_and_one_main_part(trees):
    for name, tree in trees.items():
        assert tree.of("html")[0].attributes["lang"] == "en", name
        assert tree.of("title")[0].text() and len(tree.of("h1")) == len(tree.of("main")) == 1, name


def test_the_first_link_skips_to_the_main_part(trees):
    for name, tree in trees.items():
        first = tree.of("a")[0]
        (main,) = tree.of("main")
        assert first.attributes["href"] == "#" + main.attributes["id"], name
        assert "skip" in first.attributes["class"] and main.attributes["tabindex"] == "-1"


def test_headings_go_down_one_level_at_a_time(trees):
    for name, tree in trees.items():
        levels = [int(element.tag[1]) for element in tree.of("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        for before, after in pairwise(levels):
            assert after <= before + 1, (name, levels)


def test_tables_have_captions_and_headings_a_scope(trees):
    for name, tree in trees.items():
        for table in tree.of("table"):
            captions = [child for child in table.children if child.tag == "caption"]
            assert len(captions) == 1 and captions[0].text(), (name, table)
        for heading in tree.of("th"):
            assert heading.attributes.get("scope") in ("col", "row", "colgroup"), (name, heading)
            assert heading.text(), (name, heading)
        for row in (row for body in tree.of("tbody") for row in body.children):
            assert row.children[0].tag == "th" or "more" in row.attributes.get("class", ""), name


def test_tables_made_of_other_elements_have_their_roles(trees):
    tree = trees["pictures/testbed.html"]
    tables = [element for element in tree.all if element.attributes.get("role") == "table"]
    assert tables
    for table in tables:
        assert table.attributes["aria-label"]
        counts = set()
        for row in table.children:
            assert row.attributes["role"] == "row"
            roles = [cell.attributes["role"] for cell in row.children]
            assert roles[0] in ("columnheader", "rowheader")
            assert set(roles[1:]) <= {"columnheader", "cell"}
            counts.add(len(roles))
        assert len(counts) == 1


def test_pictures_and_charts_say_what_they_show_or_are_hidden(trees):
    for name, tree in trees.items():
        for picture in tree.of("img"):
            assert picture.attributes.get("alt"), (name, picture)
        for drawing in tree.of("svg"):
            hidden = drawing.attributes.get("aria-hidden") == "true"
            named = drawing.attributes.get("role") == "img" and drawing.attributes["aria-label"]
            assert hidden or named, (name, drawing)


def test_controls_have_names(trees):
    for name, tree in trees.items():
        for control in tree.of(*CONTROLS - {"output"}):
            labels = [element for element in control.above() if element.tag == "label"]
            words = control.attributes.get("aria-label") or (labels and labels[0].text())
            assert words or (control.tag == "button" and control.text()), (name, control)
        for part in tree.of("form", "nav"):
            assert part.attributes.get("aria-label"), (name, part)
        for link in tree.of("a"):
            inside = [image.attributes["alt"] for image in link.below() if image.tag == "img"]
            assert link.text() or inside, (name, link)
        for details in tree.of("details"):
            assert details.children[0].tag == "summary" and details.children[0].text(), name


def test_what_scrolls_can_be_reached_by_key_and_has_a_name(trees):
    for name, tree in trees.items():
        for part in tree.all:
            if "scroll" in part.attributes.get("class", "").split():
                assert part.attributes["tabindex"] == "0", (name, part)
                assert part.attributes["role"] == "region" and part.attributes["aria-label"]


def test_names_by_reference_lead_somewhere(trees):
    for name, tree in trees.items():
        ids = [e.attributes["id"] for e in tree.all if "id" in e.attributes]
        assert len(ids) == len(set(ids)), name
        for element in tree.all:
            if reference := element.attributes.get("aria-labelledby"):
                assert reference in ids, (name, reference)


# ---- contrast


def luminance(colour):
    text = colour.lstrip("#")
    text = "".join(2 * letter for letter in text) if len(text) == 3 else text
    parts = [int(text[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def themes(style):
    """The colours of each `:root` rule by name."""
    found = []
    for rule in re.findall(r":root[^{]*\{([^}]*)\}", style):
        found.append(dict(re.findall(r"(--[\w-]+):\s*(#[0-9a-fA-F]{3,6})\b", rule)))
    return found


def test_contrast_is_what_it_is_defined_to_be():
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_text_stands_out_from_what_is_behind_it():
    """4.5:1 is asked for (WCAG 2.2, 1.4.3)."""
    style = package_file("charts.css")
    light, dark, switched = themes(style)
    assert dark == switched
    for theme in (light, dark):
        for text in ("--ink", "--soft", "--link", "--good", "--bad"):
            for behind in ("--paper", "--panel", "--hover", "--tint"):
                if (text, behind) != ("--link", "--tint"):  # no link stands on a bar
                    assert contrast(theme[text], theme[behind]) >= 4.5, (text, behind)
    for name in ("detectors.html", "experiment.html", "index.html", "report.html"):
        for theme in themes(package_file(name)):
            for behind in {"--paper", "--band"} & theme.keys():
                for text in {"--ink", "--faint", "--link", "--sure", "--bad"} & theme.keys():
                    assert contrast(theme[text], theme[behind]) >= 4.5, (name, text, behind)


def test_no_rule_takes_the_focus_out_of_sight():
    for name in ("leaderboard.css", "detectors.html", "experiment.html", "index.html"):
        style = package_file(name)
        assert ":focus-visible { outline: 2px solid" in style, name
        for selector in re.findall(r"([^{}]*)\{[^{}]*outline:\s*(?:0|none)", style):
            # a part that only a skip link moves to
            assert selector.split()[-1] in ("#main:focus", "main:focus"), selector
