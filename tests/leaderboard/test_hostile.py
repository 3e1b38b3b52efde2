"""Texts that want to be something else, in every place of a record, through every format that is
made from records.
"""

import csv
import io
import json
import re
import xml.dom.minidom
from html.parser import HTMLParser

import pytest
from test_leaderboard import record

from bench.leaderboard import latex
from bench.leaderboard.board import make_boards
from bench.leaderboard.comparing import compare, shown
from bench.leaderboard.leaderboard import make_pages, row_table
from bench.leaderboard.report import page
from bench.records.record import RecordedExhibit, Score, Shown, Thumbnail, load_records

MARKUP = (
    "<script>window.hacked=1</script><img src=x onerror=hacked()>\"'`</td></table></style>&amp;"
)
TURNED = "a\u202eb\u2066c\u200bd\x1b[31m\x00\x07"
LINES = "one\ntwo\r\nthree\u2028four\tfive | six\\| seven"
LONG = "word " * 2000
STYLED = (
    "[bold red]x[/bold red] [link=http://x]y[/] {{ 7*7 }} {% raw %} \\input{secret} $x$ %y #z ]]>"
    " <!-- board demo -->"
)
ALL = f"{MARKUP} {TURNED} {LINES} {STYLED} {LONG}"
INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\u2028\u2029\u2066-\u2069]")


@pytest.fixture(
    scope="module",
    params=[MARKUP, TURNED, LINES, STYLED, ALL],
    ids=["markup", "turned", "lines", "styled", "all"],
)
def hostile(request, tmp_path_factory):
    """A folder of records where one is hostile in all its free texts, and that text."""
    text, folder = request.param, tmp_path_factory.mktemp("hostile") / "records"
    record("none", 0.6).save(folder)
    one = record(
        "evil",
        0.5,
        run="e" * 12,
        where=text,
        needs=[text],
        paper=text,
        parameters={text: text},
        changed={text: text},
        tuning={"kept": [text], text: text},
        warnings=[text],
        environment={"device_name": text, text: text},
        sources={text: text},
        group_name=text,
        facts={text: {text: 1.0}},
        intervals=text,
        thumbnails=[
            Thumbnail(prompt_id=text, prompt=text, group=text, seed=2, png=text, reference=text)
        ],
        exhibits=[
            RecordedExhibit(
                attack=text,
                prompt_id=text,
                prompt=text,
                group=text,
                caption=text,
                pictures=[text],
                reference=text,
            )
        ],
    )
    own = Score(
        value=0.5,
        unit=text,
        higher_is_better=True,
        metric="sscd",
        metric_version=1,
        details={text: text},
        groups={text: 0.5},
    )
    one.scores["own"] = own.model_copy(update={"shown": Shown(heading=text, meaning=text)})
    one.scores["sscd"] = one.scores["sscd"].model_copy(
        update={"groups": {text: 0.1, "1": 0.2}, "details": {text: text}}
    )
    one.attacks["clique_identified"] = own.model_copy(
        update={
            "metric": "clique_extraction",
            "unit": "share of prompts",
            "details": {"images": text},
        }
    )
    one.attacks["null"] = Score(
        value=None,
        unit=text,
        higher_is_better=None,
        metric="clique_extraction",
        metric_version=1,
        reason=text,
    )
    for name in ("none", "evil"):  # of one protocol
        saved = record("none", 0.6) if name == "none" else one
        saved.attacks["clique_identified"] = one.attacks["clique_identified"]
        saved.save(folder)
    record("broken", 0.1, run="b" * 12, status="failed", errors=[text]).save(folder)
    theirs = record(
        "theirs", 0.1, run="c" * 12, paper=text, parameters={"x": text}, changed={"x": text}
    )
    theirs.attacks["clique_identified"] = one.attacks["clique_identified"]
    theirs.save(folder.parent / "self-reported")
    (folder / "demo" / "none" / "damaged.json").write_text(
        json.dumps({"schema_version": 2, text: text})
    )
    return folder, text


@pytest.fixture(scope="module")
def pages(hostile):
    made, problems = make_pages(hostile[0])
    assert len(problems) == 1 and "\n" not in problems[0]
    return {name: content.decode() for name, content in made.items()}


class Strict(HTMLParser):
    """Every element is closed by its own end tag, and nothing runs that is not the page's own."""

    VOID = ("meta", "img", "br", "link", "input", "wbr", "col", "hr")

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.scripts = [], 0

    def handle_starttag(self, tag, attributes):
        assert not any(name.startswith("on") for name, _ in attributes), attributes
        for name, value in attributes:
            assert (
                name not in ("href", "src")
                or not value
                or value.startswith(("#", "data:image/png;base64,", "https://"))
                or value in ("index.html", "pictures/demo.html", "../index.html", "../demo.html")
                or re.fullmatch(r"(pictures/)?demo/([0-9a-f]{12}(-finds)?|training)\.svg", value)
            ), (name, value[:80])
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def test_html_stays_well_formed_and_runs_nothing(hostile, pages):
    records = {record.method: record for record in load_records(hostile[0])[0]}
    for text, scripts in (
        (pages["demo.html"], 1),
        (pages["pictures/demo.html"], 1),
        (page(records["evil"]), 0),
        (page(records["broken"]), 0),
    ):
        parser = Strict()
        parser.feed(text)
        parser.close()
        assert parser.open == [] and parser.scripts == scripts
        assert "hacked=1</script>" not in text and not INVISIBLE.search(text)


def test_markdown_tables_keep_their_cells(pages):
    text = pages["demo.md"]
    assert (
        not INVISIBLE.search(text)
        and "<script" not in text
        and "<img" not in text
        and "<!--" not in text
    )
    tables = re.split(r"\n(?!\|)", text)
    for part in (part.lstrip("\n").split("\n") for part in tables):
        cells = {
            len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in part if line.startswith("|")
        }
        assert len(cells) <= 1
    assert max(map(len, text.splitlines())) < 20_000


def test_csv_and_json_hold_the_texts_as_they_are(hostile, pages):
    text = hostile[1]
    rows = json.loads(pages["demo.json"])
    evil = next(row for row in rows if row["method"] == "evil")
    assert evil["parameters"] == {text: text} and evil["where"] == text and evil["needs"] == [text]
    table = list(csv.DictReader(io.StringIO(pages["demo.csv"], newline="")))
    assert (
        [row["method"] for row in table]
        == [row["method"] for row in rows]
        == ["evil", "none", "theirs"]
    )
    assert json.loads(next(row["parameters"] for row in table if row["method"] == "evil")) == {
        text: text
    }
    assert all(None not in row for row in table)


def test_latex_rows_keep_their_cells_and_no_command_comes_in(pages):
    lines = pages["demo.tex"].splitlines()
    assert lines[-1] == r"\end{tabular}" and not INVISIBLE.search(pages["demo.tex"])
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1
    words = "textbackslash textasciicircum textasciitilde textless textgreater textbar scriptsize"
    names = "|".join(
        name for name in [*words.split(), "dag", "ddag", *latex.COMMANDS] if name.isalpha()
    )
    known = rf"\\((?:{names})(?![A-Za-z])|[{{}}$&#%_\\'`^\"~=.])"
    for line in rows:
        # the only formulas
        plain = re.sub(r"\$\\(downarrow|uparrow|times|bullet|Delta)\$", "", line)
        assert not re.search(r"(?<!\\)[$%#]", plain) and not re.sub(known, "", plain).count("\\"), (
            line[:300]
        )


def test_the_picture_is_xml(pages):
    assert xml.dom.minidom.parseString(pages["pictures/demo.svg"]).documentElement.tagName == "svg"
    assert not INVISIBLE.search(pages["pictures/demo.svg"])


def test_the_terminal_shows_the_texts_as_they_are(hostile):
    from rich.console import Console

    records = {record.method: record for record in load_records(hostile[0])[0]}
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    console.print(row_table(records["evil"], list(records.values())))
    for part in shown(compare(records["none"], records["evil"])):
        console.print(part if not isinstance(part, str) else part.replace("[", "\\["))
    printed = console.file.getvalue()
    assert "\x1b[31m" not in printed and "\x07" not in printed and "\u202e" not in printed
    if hostile[1] == STYLED:
        assert "[bold red]x[/bold red]" in printed


def test_a_readme_keeps_its_marks(hostile, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- board demo -->\nold\n<!-- end -->\nafter\n<!-- extraction demo -->\n<!-- end"
        " -->\nlast\n"
    )
    once = make_pages(hostile[0], readme)[0]["../README.md"].decode()
    readme.write_text(once)
    assert make_pages(hostile[0], readme)[0]["../README.md"].decode() == once
    assert once.count("<!--") == 4 and once.endswith("last\n") and "\nafter\n" in once


def test_boards_of_hostile_records_have_all_rows(hostile):
    (board,) = make_boards(load_records(hostile[0])[0])
    assert [row.record.method for row in board.rows] == ["evil", "none"] and len(board.apart) == 1
