"""The figures of docs/locality.md are those of the committed analysis."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "leaderboards/analyses/locality-testbed"
PAGE = (ROOT / "docs/locality.md").read_text(encoding="utf-8")
ROWS = {
    "nothing": "nothing",
    "triggers of other memorized pictures": "different",
    "triggers of a picture that was never trained on": "control",
    "clean captions": "clean",
}


def test_the_table_is_what_the_transfer_says():
    copies = defaultdict(list)
    with (FOLDER / "transfer.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            name = row["pruned"]
            if name == "same":
                name = "itself" if row["pruned_member"] == row["trigger"] else "another"
            copies[name].append(float(row["copied"]))
    names = ROWS | {"the trigger itself": "itself", "another trigger of the picture": "another"}
    for said, name in names.items():
        assert f"| {said} | {fmean(copies[name]):.0%} |".replace("%", " %") in PAGE


def test_the_figures_in_the_text_stand_in_the_conclusions():
    conclusions = (FOLDER / "conclusions.txt").read_text(encoding="utf-8")
    text = PAGE.partition("By the test that decides")[2]
    figures = re.findall(r"\d\.\d{3}", text)
    assert len(figures) == 5
    assert all(figure in conclusions for figure in figures)
    assert "the triggers lead to the same weights" in conclusions
