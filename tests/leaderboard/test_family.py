"""What a board may call clearly better: p-values of the whole family, by Holm."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bench.leaderboard.columns import BY_NAME
from bench.leaderboard.family import LEVEL, adjusted
from bench.leaderboard.glance import CLEARLY_BETTER, NOT_IN_THE_FAMILY, verdict
from bench.statistics.claims import holm, sign_flip_p

NAMES = ("copies", "clip_score_clean")
random = np.random.default_rng(3)
BASE = {name: random.random(40) for name in NAMES}


def row(run, copies=0.0, clip=0.0, method="some", seeds=1):
    shifts = {"copies": copies, "clip_score_clean": clip}
    per_prompt = {
        name: {f"p{i:02d}": value for i, value in enumerate((BASE[name] + shifts[name]).tolist())}
        for name in NAMES
    }
    return SimpleNamespace(
        run=run,
        method=method,
        seeds=seeds,
        scores=dict.fromkeys(NAMES),
        cost={},
        attacks={},
        per_prompt=per_prompt,
        design={},
    )


def test_p_values_are_corrected_over_rows_and_both_columns():
    noise = 0.2 * random.normal(size=(3, 40))
    reference = row("0", method="none")
    rows = [reference, *(row(str(i + 1), copies=noise[i] - 0.07) for i in range(3))]
    found = adjusted(rows, reference)
    plain = [sign_flip_p(noise[i] - 0.07) for i in range(3)]
    expected = holm([value for p in plain for value in (p, 1.0)])  # clean CLIP did not change
    assert found.keys() == {"1", "2", "3"}
    assert [found[str(i + 1)]["copies"] for i in range(3)] == pytest.approx(
        [expected[2 * i] for i in range(3)], rel=1e-6
    )
    assert all(found[run]["clip_score_clean"] == 1 for run in found)


def test_the_reference_makes_no_claim_and_without_it_nobody_does():
    reference = row("0", method="none")
    assert adjusted([reference], reference) == {}
    assert adjusted([row("1")], None) == {}


def test_what_the_extraction_attack_gets_is_counted_too():
    reference, other = row("0", method="none"), row("1", copies=-0.2)
    random = np.random.default_rng(0)
    found = {f"p{i:02d}": float(random.random() < 0.5) for i in range(40)}
    reference.per_prompt["clique_extracted"] = found
    other.per_prompt["clique_extracted"] = dict.fromkeys(found, 0.0)
    p_values = adjusted([reference, other], reference)["1"]
    assert p_values["clique_extracted"] < LEVEL and p_values["clip_score_clean"] == 1


def test_an_interval_alone_is_not_enough_for_a_headline_column():
    column = BY_NAME["copies"]
    shown = SimpleNamespace(reference=reference_row(), difference=lambda c: (-0.1, -0.19, -0.01))
    for value, words in ((LEVEL, CLEARLY_BETTER), (0.2, NOT_IN_THE_FAMILY)):
        shown.adjusted = {"copies": value}
        assert verdict(shown, column) == words
    shown.adjusted = {}
    assert verdict(shown, column) == CLEARLY_BETTER


def reference_row():
    return row("0", method="none")
