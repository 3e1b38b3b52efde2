"""The figures of docs/removal.md are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.records.record import load_record

ROOT = Path(__file__).parents[2]
NAMES = (
    "copies",
    "copies_unnamed",
    "clip_score_clean",
    "clip_score_neighbours",
    "dori_memorized",
    "dori_control",
    "completion_memorized",
)


def lines():
    page = (ROOT / "docs/removal.md").read_text(encoding="utf-8")
    table = page.partition("| row | named copies |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        name, *values = [cell.strip() for cell in line.strip("|").split("|")]
        method, adversary = re.fullmatch(r"`(\w+)`(?:, adversary `(\w+)`)?", name).groups()
        yield method, adversary, [float(value) for value in values]


@pytest.mark.parametrize(("method", "adversary", "values"), list(lines()))
def test_a_line_of_the_table_is_what_the_record_says(method, adversary, values):
    files = (ROOT / "leaderboards/records/testbed-removal" / method).glob("*.json")
    records = map(load_record, files)
    (record,) = (one for one in records if one.changed.get("adversary") == adversary)
    scores = record.scores | record.attacks
    assert values == [round(scores[name].value, 2) for name in NAMES]
