"""No interval of a committed record claims to know its number exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.records.record import load_record

RECORDS = Path(__file__).parents[2] / "leaderboards/records"


@pytest.mark.parametrize("file", sorted(RECORDS.rglob("*.json")), ids=lambda file: file.stem)
def test_no_interval_has_no_width(file):
    """Evaluations may be the same number for every image, which is no estimate."""
    record = load_record(file)
    scores = record.scores | record.attacks | record.cost
    exact = [
        name
        for name, score in scores.items()
        if score.low is not None and score.low == score.high and score.unit != "row evaluations"
    ]
    assert not exact
