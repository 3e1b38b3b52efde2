"""Every share of docs/intervals.md is the one that coverage.py counted, and none is too small."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from benchmarks.coverage import KEPT, lines

COUNTED = json.loads(KEPT.read_text(encoding="utf-8"))
PAGE = KEPT.with_suffix(".md").read_text(encoding="utf-8")
# A point and a half below what is promised is what the page owns to; 1,000 simulations of a right
# interval give less than this once in 1,000 times.
LEAST = 0.928


def tables():
    """(line, {number of prompts: share}) of every row of the page, in its order."""
    sizes = []
    for text in PAGE.splitlines():
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if not text.startswith("|") or set(cells[0]) == {"-"}:
            continue
        if all(cell.isdigit() for cell in cells[1:]):
            sizes = cells[1:]
        else:
            pairs = zip(sizes, cells[1:], strict=True)
            yield cells[0], {size: share for size, share in pairs if share != "–"}


def test_the_page_has_what_was_counted_of_every_line():
    told = dict(tables())
    assert told.keys() == COUNTED.keys() == {line.what for line in lines()}
    for what, shares in told.items():
        counted = {
            size: f"{cell['covered'] / cell['of']:.3f}".lstrip("0")
            for size, cell in COUNTED[what].items()
        }
        assert shares == counted, what


def test_no_interval_is_too_short():
    for what, sizes in COUNTED.items():
        for size, cell in sizes.items():
            assert cell["of"] > 900, f"{what}: the data often allow no interval"
            assert cell["covered"] / cell["of"] >= LEAST, f"{what}, {size} prompts"


@pytest.mark.parametrize("line", lines(), ids=lambda line: re.sub(r"\W+", "-", line.what))
def test_a_line_is_simulated_as_it_was_counted(line):
    """A few simulations of the smallest size: the same every time, and most of them right."""
    prompts = line.prompts[0]
    answers = [
        [line.covers(np.random.default_rng([7, run]), prompts) for run in range(6)]
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert sum(bool(answer) for answer in answers[0]) >= 4
