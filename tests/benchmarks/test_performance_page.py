"""Every figure of docs/performance.md stands in what its benchmark printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks.report import HERE, KEPT, PARTS, command_of

PAGE = (HERE / "docs/performance.md").read_text(encoding="utf-8")
FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?")
REPORT = json.loads(KEPT.read_text(encoding="utf-8"))


def rows():
    """The lines of all tables that name a part of the report in their last column."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and (named := re.fullmatch(r"`(\w+)`", cells[-1])):
            yield (
                cells[0],
                [found for cell in cells[1:-1] for found in FIGURE.findall(cell)],
                named[1],
            )


@pytest.mark.parametrize(("what", "figures", "part"), list(rows()))
def test_a_figure_is_what_the_benchmark_printed(what, figures, part):
    printed = FIGURE.findall(" ".join(REPORT[part]["output"]))
    assert figures, f"{what} has no figure"
    assert not [figure for figure in figures if figure not in printed]


def test_every_part_was_measured_by_the_command_that_is_named_and_stands_on_the_page():
    assert REPORT.keys() == PARTS.keys()
    for name, part in REPORT.items():
        assert part["command"] == command_of(name)
        assert Path(HERE / "tests/benchmarks" / PARTS[name][0][0]).is_file()
    assert {part for _, _, part in rows()} == PARTS.keys()


def test_figures_in_the_text_were_printed():
    def printed(part):
        return FIGURE.findall(" ".join(REPORT[part]["output"]))

    assert "10.68 billion operations" in PAGE
    assert "sampling does 89 %" in PAGE
    assert {"10.68", "0.89"} <= set(printed("generation"))
    assert "(0.012 s and 0.006 s)" in PAGE
    assert "44 to 110" in PAGE
    assert {"0.012", "0.006", "44", "110"} <= set(
        re.findall(r"\d+(?:\.\d+)?", " ".join(REPORT["cliques"]["output"]))
    )
    searched = [line.split() for line in REPORT["nemo"]["output"] if len(line.split()) == 7]
    bounds = [int(cells[4]) / int(cells[3]) for cells in searched if cells[3].isdigit()]
    assert f"{min(bounds):.0%}".rstrip("%") + f" to {max(bounds):.0%}".rstrip("%") in PAGE
