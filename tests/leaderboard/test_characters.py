"""A method that paints grey pictures, one that copies other training pictures instead, and one that
only weakens guidance: the page tells each for what it is.
"""

import hashlib
import re

import numpy as np
import pytest

from bench.leaderboard.board import make_boards
from bench.leaderboard.curves import curves
from bench.leaderboard.glance import CLEAN, CLEARLY_BETTER, CLEARLY_WORSE, COPIES, glance, verdict
from bench.leaderboard.page import html
from bench.records.record import RunRecord, Score
from bench.records.sweep import Measured, Point, Sweep

PROMPTS = [f"p{i:02d}" for i in range(40)]
WOBBLE = np.random.default_rng(0).normal(size=40)


def record(method, copies, any_copy, clean, **changes):
    """Scores whose values by prompt vary around what they are given as."""
    given = {"copies": copies, "any_copy": any_copy, "clip_score_clean": clean}
    scores, per_prompt = {}, {}
    for name, value in given.items():
        spread = 0.02 if name == "clip_score_clean" else 0.1 * (0 < value < 1)
        means = np.clip(value + spread * (WOBBLE - WOBBLE.mean()), 0, 1)
        per_prompt[name] = dict(zip(PROMPTS, means.tolist(), strict=True))
        scores[name] = Score(
            value=float(means.mean()),
            low=float(means.mean()) - 0.03,
            high=float(means.mean()) + 0.03,
            n=160,
            prompts=40,
            unit="cosine" if name == "clip_score_clean" else "share",
            higher_is_better=name == "clip_score_clean",
            metric=name,
            metric_version=1,
        )
    content = {
        "run": hashlib.sha256(method.encode()).hexdigest()[:12],
        "status": "complete",
        "suite": "demo",
        "suite_version": 1,
        "suite_fingerprint": "f" * 16,
        "method": method,
        "method_version": 1,
        "where": "nothing" if method == "none" else "guidance",
        "needs": [],
        "paper": "",
        "parameters": {},
        "scores": scores,
        "per_prompt": per_prompt,
        "holds_against": [] if method == "none" else ["api"],
        "cost": {},
        "environment": {},
        "images": {"memorized": 160},
    }
    return RunRecord(**{**content, **changes})


NONE = record("none", 0.9, 0.88, 0.75)


def board_of(*records, sweeps=()):
    (board,) = make_boards([NONE, *records], sweeps=sweeps)
    return board


def row_of(board, method):
    return next(row for row in board.rows if row.record.method == method)


def test_grey_pictures_have_no_copies_and_the_page_says_what_they_cost():
    board = board_of(record("grey", 0.0, 0.0, 0.40), record("good", 0.3, 0.3, 0.745))
    grey = row_of(board, "grey")
    assert verdict(grey, COPIES) == CLEARLY_BETTER and verdict(grey, CLEAN) == CLEARLY_WORSE
    keeps = next(card for card in glance(board) if card.name == "keeps")
    assert keeps.answers[0].row.record.method == "good"
    assert all(row.record.method != "grey" for row in keeps.answers[0].others)
    # alone on the board it still leads nothing without a word
    (card,) = [
        card for card in glance(board_of(record("grey", 0.0, 0.0, 0.4))) if card.name == "keeps"
    ]
    assert card.answers == () and card.nothing == ("None of them.",)


def test_copies_of_other_pictures_are_told_from_no_copies():
    swaps, mends = record("swaps", 0.1, 0.88, 0.745), record("mends", 0.15, 0.14, 0.745)
    board = board_of(swaps, mends)
    page = html(board)
    # in each of the answers that it gives
    said = [found.start() for found in re.finditer("copies other training pictures instead", page)]
    assert len(said) == 2
    for place in said:
        assert "swaps" in page[place - 700 : place]
    assert "copies other training pictures instead" not in html(board_of(mends))


def curve(method, points):
    measured = []
    for number, (copies, clean) in enumerate(points):
        one = record(method, copies, copies, clean)
        measured.append(
            Point(
                strength=number / 10 if number else None,
                scores={name: Measured(value=s.value) for name, s in one.scores.items()},
                per_prompt={n: one.per_prompt[n] for n in ("copies", "clip_score_clean")},
            )
        )
    return Sweep(
        suite="demo",
        suite_version=1,
        suite_fingerprint="f" * 16,
        method=method,
        method_version=1,
        source=None,
        field="share",
        parameters={},
        replication="copies",
        utility="clip_score_clean",
        none=measured[0],
        points=measured[1:],
        environment={},
    )


def test_what_only_weakens_guidance_stands_where_the_control_stands():
    weaker = [(0.9, 0.75), (0.7, 0.73), (0.5, 0.71), (0.3, 0.65)]
    better = [(0.9, 0.75), (0.5, 0.74), (0.2, 0.73), (0.1, 0.70)]
    sweeps = [curve("guidance", weaker), curve("withholds", weaker), curve("works", better)]
    board = board_of(record("withholds", 0.5, 0.5, 0.71), sweeps=sweeps)
    found = {one.sweep.method: one for one in curves(board)}
    assert found["guidance"].control and not found["withholds"].control
    assert found["withholds"].left == found["guidance"].left
    for at, control in zip(found["works"].left, found["guidance"].left, strict=True):
        assert at[2] < control[1]  # clearly less where clean CLIP is the same
    page = html(board)
    assert page.count('class="curve h-ref control"') == 1
    assert page.count("<small>control</small>") == 2  # in the legend, and in the table


@pytest.mark.parametrize("clean", [0.75, 0.65])
def test_a_control_that_is_a_row_is_marked_by_its_curve_only(clean):
    assert curves(board_of(record("guidance", 0.5, 0.5, clean))) == []
