"""The Pareto front: rows that no other beats, by paired intervals of three numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bench.leaderboard.front import each_against_each, front, ranks
from bench.records.record import Score

PROMPTS = [f"p{i}" for i in range(40)]


def row(
    run, copies=0.5, clip=0.3, nfe=50.0, noise=0.0, seed=0, names=("copies", "clip_score_clean")
):
    """A record by its means; prompts differ by `noise`, each row in its own way."""
    random = np.random.default_rng(seed)
    per_prompt = {
        name: dict(zip(PROMPTS, (mean + noise * random.normal(size=40)).tolist(), strict=True))
        for name, mean in zip(names, (copies, clip), strict=True)
    }
    scores = {
        name: Score(
            value=float(np.mean(list(values.values()))),
            n=40,
            unit="cosine",
            higher_is_better=name.startswith("clip"),
            metric="m",
            metric_version=1,
        )
        for name, values in per_prompt.items()
    }
    cost = {} if nfe is None else {"nfe_per_image": SimpleNamespace(value=nfe, role=None)}
    return SimpleNamespace(
        run=run, seeds=1, scores=scores, cost=cost, attacks={}, per_prompt=per_prompt, design={}
    )


def test_a_row_that_is_clearly_better_in_one_and_worse_in_none_beats_another():
    assert front([row("a"), row("b", copies=0.4)]) == {"b"}
    assert front([row("a"), row("b", clip=0.4)]) == {"b"}
    assert front([row("a"), row("b", nfe=40)]) == {"b"}


def test_a_row_that_pays_elsewhere_beats_nobody():
    rows = [row("a"), row("b", copies=0.4, clip=0.2), row("c", copies=0.3, nfe=60)]
    assert front(rows) == {"a", "b", "c"}


def test_a_difference_that_could_be_chance_decides_nothing():
    rows = [row("a", noise=0.3, seed=1), row("b", copies=0.49, noise=0.3, seed=2)]
    assert front(rows) == {"a", "b"}
    # It does not save a row that is clearly worse elsewhere either.
    worse = row("a", copies=0.49, noise=0.3, seed=1, nfe=60)
    assert front([worse, row("b", noise=0.3, seed=2)]) == {"b"}


def test_rows_that_are_the_same_stand_both():
    assert front([row("a"), row("b")]) == {"a", "b"}


def test_without_labels_similarity_counts_and_without_clean_prompts_no_row_is_marked():
    """The CLIP score of memorized prompts falls where copies go: it decides nothing."""
    names = ("sscd", "clip_score_clean")
    assert front([row("a", names=names), row("b", copies=0.4, names=names)]) == {"b"}
    names = ("sscd", "clip_score")
    assert front([row("a", names=names), row("b", copies=0.4, names=names)]) == set()


def test_a_row_that_lacks_a_number_is_not_on_the_front_and_beats_nobody():
    assert front([row("a"), row("b", copies=0.1, nfe=None)]) == {"a"}


def test_without_values_by_prompt_the_numbers_decide():
    rows = [row("a"), row("b", copies=0.4)]
    for record in rows:
        record.per_prompt = {}
    assert front(rows) == {"b"}


def test_each_against_each_is_paired_and_reads_the_same_from_both_sides():
    rows = [row("a", noise=0.2, seed=1), row("b", copies=0.2, noise=0.2, seed=2), row("c")]
    table = each_against_each(rows)
    assert [table[i][i] for i in range(3)] == [None] * 3
    for i, j in ((0, 1), (0, 2), (1, 2)):
        value, low, high = table[i][j]
        mine, theirs = (rows[k].per_prompt["copies"] for k in (i, j))
        assert value == pytest.approx(np.mean([mine[p] - theirs[p] for p in PROMPTS]))
        assert low <= value <= high and table[j][i] == (-value, -high, -low)
    assert table[1][2][2] < 0


def test_ranks_are_of_the_rows_that_have_values():
    rows = [row("a"), row("b", copies=0.1), row("c", copies=0.3)]
    rows[2].per_prompt = {}
    assert ranks(rows) == {"a": (2, 2), "b": (1, 1)}
    assert ranks([rows[2]]) == {}
