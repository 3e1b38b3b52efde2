import csv
import io
import random
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.base.errors import UserError
from bench.leaderboard.published import COLUMNS, Published, load_published, markdown

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "leaderboards/published.csv"
ROW = {
    "work": "Wen et al.",
    "year": "2024",
    "method": "wen",
    "model": "SD 1.4",
    "suite_or_protocol": "memorized",
    "score": "sscd",
    "value": "0.10",
    "spread": "0.02",
    "unit": "cosine",
    "n": "500 x 4",
    "where": "Table 1",
    "source": "arXiv:2407.21720",
    "tag": "paper",
    "note": "",
}
HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "one\ntwo",
    "\\|",
    "[x](javascript:alert(1))",
    "`code`",
    "*bold* _it_ ~no~",
    "&lt;b&gt;",
    "![p](u)",
    "a\r\n|---|",
]


def written(path, *rows, columns=COLUMNS):
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        [row.get(name, "") for name in columns] if isinstance(row, dict) else row for row in rows
    )
    path.write_text(stream.getvalue(), encoding="utf-8", newline="")
    return path


def published(**changes):
    row = ROW | {key: str(value) for key, value in changes.items()}
    return Published(
        **row
        | {
            "year": int(row["year"]),
            "value": Decimal(row["value"]),
            "spread": Decimal(row["spread"]) if row["spread"] else None,
        }
    )


def test_a_row_is_read_as_it_was_printed(tmp_path):
    (row,) = load_published(written(tmp_path / "p.csv", ROW))
    assert row == published()
    assert row.shown == "0.10 ± 0.02"
    assert "| 0.10 ± 0.02 |" in markdown([row])
    assert "[Wen et al. 2024](https://arxiv.org/abs/2407.21720)" in markdown([row])


def test_spread_number_and_note_may_be_empty_and_nothing_else(tmp_path):
    (row,) = load_published(written(tmp_path / "p.csv", ROW | {"spread": "", "n": "", "note": ""}))
    assert (row.spread, row.n, row.note, row.shown) == (None, "", "", "0.10")
    for name in set(COLUMNS) - {"spread", "n", "note"}:
        with pytest.raises(UserError, match=f"p.csv, line 2: {name} is missing"):
            load_published(written(tmp_path / "p.csv", ROW | {name: " "}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("value", "nan"),
        ("value", "inf"),
        ("value", "-Infinity"),
        ("value", "1e3"),
        ("value", "1_000"),
        ("value", "1,280"),
        ("value", "9 %"),
        ("value", "٣"),
        ("value", "9" * 13),
        ("spread", "nan"),
        ("spread", "-0.1"),
        ("year", "24"),
        ("year", "2024.5"),
        ("tag", "S"),
        ("tag", "Paper"),
        ("score", "SSCD"),
        ("score", "a b"),
        ("source", "2407.21720"),
        ("source", "javascript:alert(1)"),
        ("source", "https://a.b/c) [x](d"),
        ("source", "https://a.b/|"),
        ("note", "a\u202eb"),
        ("note", "a\x00b"),
    ],
)
def test_a_wrong_cell_names_file_line_and_column(tmp_path, name, text):
    path = written(
        tmp_path / "p.csv", ROW | {"note": "two\nlines"}, ROW | {"where": "Table 2", name: text}
    )
    with pytest.raises(
        UserError, match=f"p.csv, line 4: .*{name if chr(0) not in text else ''}"
    ) as caught:
        load_published(path)
    assert "\n" not in str(caught.value)


def test_wrong_columns_cells_and_doubles_are_refused(tmp_path):
    path = tmp_path / "p.csv"
    for columns, message in (
        ((*COLUMNS, "extra"), "line 1: unknown column 'extra'"),
        (COLUMNS[1:], "line 1: column 'work' is missing"),
        ((*COLUMNS, "note"), "line 1: the columns must be"),
        ((COLUMNS[1], COLUMNS[0], *COLUMNS[2:]), "in this order"),
    ):
        with pytest.raises(UserError, match=message):
            load_published(written(path, ROW, columns=columns))
    with pytest.raises(UserError, match="line 2: 3 cells instead of 14"):
        load_published(written(path, ["a", "b", "c"]))
    with pytest.raises(UserError, match="line 3: the figure of line 2 again"):
        load_published(written(path, ROW, ROW | {"value": "0.2"}))
    assert len(load_published(written(path, ROW, ROW | {"where": "Table 2"}))) == 2


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"work\n", ",".join(COLUMNS).encode() + b'\n"unended']
)
def test_a_file_that_is_none_is_an_error_of_one_line(tmp_path, content):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(UserError, match="p.csv, line") as caught:
        load_published(tmp_path / "p.csv")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="none.csv"):
        load_published(tmp_path / "none.csv")


def test_second_hand_figures_are_left_out_unless_asked_for_and_then_marked():
    rows = [published(), published(method="nemo", value="0.77", tag="second_hand")]
    assert "0.77" not in markdown(rows)
    assert "Left out: 1 figures" in markdown(rows)
    page = markdown(rows, second_hand=True)
    assert (
        "| 0.77 ± 0.02 ‡ |" in page
        and "| second-hand |" in page
        and "‡ second-hand:" in page
        and "Left out" not in page
    )
    assert page.count("‡") == 2  # the row and the line that explains it
    assert "‡" not in markdown(rows[:1], second_hand=True)


def test_the_page_first_says_that_nothing_here_compares_with_measured_rows():
    for rows in ([], [published()]):
        title, _, warning, *_ = markdown(rows).splitlines()
        assert title == "# Published figures"
        assert warning.startswith("**Not comparable with measured rows**")
    assert "No figures." in markdown([])


def cells_of(line):
    """Cells of a table line as GitHub splits them: at every bar that no backslash escapes, two
    backslashes being one.
    """
    return re.findall(r"(?:\\.|[^|\\])+", line.strip().removeprefix("|").removesuffix("|"))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "name", ["work", "method", "model", "suite_or_protocol", "unit", "n", "where", "note"]
)
def test_hostile_text_stays_in_its_cell(tmp_path, name, text):
    rows = load_published(written(tmp_path / "p.csv", ROW | {name: text}))
    page = markdown(rows)
    (line,) = [line for line in page.splitlines() if "2024" in line]
    assert len(page.splitlines()) == len(markdown([published()]).splitlines())
    assert len(cells_of(line)) == 11
    assert "<" not in page.replace("&lt;", "") and not re.search(r"(?<!\\)`", page)
    assert len(re.findall(r"(?<!\\)\]\(", line)) == 1  # the source's link alone


@given(text=st.text(max_size=30))
def test_any_text_keeps_the_table_whole(text):
    page = markdown([published(note=text, method=text or "none")])
    (line,) = [line for line in page.split("\n") if "2024" in line]
    assert len(cells_of(line)) == 11
    assert page.split("\n").index(line) == 6


@given(seed=st.integers(0, 2**32))
def test_the_order_of_rows_does_not_matter(seed):
    rows = [
        published(method=m, value=v, where=w, score=s)
        for m in ("none", "wen")
        for v in ("0.1", "0.10")
        for w in ("Table 1", "Table 2")
        for s in ("sscd", "fid")
    ]
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert markdown(shuffled) == markdown(rows)
    assert [line.split("|")[2].strip() for line in markdown(shuffled).splitlines()[6:10]] == [
        "none"
    ] * 4


# ---- the committed file


def figures(**wanted):
    return {
        str(row.value)
        for row in load_published(FILE)
        if all(getattr(row, key) == value for key, value in wanted.items())
    }


def test_the_committed_file_says_what_the_papers_say():
    chavhan = "Chavhan et al."
    assert figures(work=chavhan, method="none", score="identified") == {"0.09"}
    assert figures(work=chavhan, method="none", score="actually_memorized") == {"0.08"}
    assert figures(work=chavhan, method="wanda") == {"0.00"}
    verbatim = "LAION prompts memorized as verbatim"
    assert figures(method="none", score="sscd", suite_or_protocol=verbatim) == {"0.83"}
    assert figures(method="wen", score="sscd", suite_or_protocol=verbatim) == {"0.04"}
    assert figures(work="Carlini et al.") == {"94", "109", "50", "23", "3", "0", "1280", "986"}


def test_the_committed_file_is_consistent():
    rows = load_published(FILE)
    assert {row.tag for row in rows} == {"paper", "code", "second_hand"}
    for row in rows:
        assert {
            "share": 0 <= row.value <= 1,
            "area": 0 <= row.value <= 1,
            "cosine": -1 <= row.value <= 1,
        }.get(row.unit, True), row
    assert len({(row.work, row.year, row.source) for row in rows}) == len(
        {row.work for row in rows}
    )
    assert {row.tag for row in rows if row.work.startswith(("Carlini", "Jain", "Kowalczuk"))} == {
        "second_hand"
    }
    assert markdown(rows).count("\n| [") == sum(row.tag != "second_hand" for row in rows)
    units = {}
    for row in rows:
        assert units.setdefault(row.score, row.unit) == row.unit
