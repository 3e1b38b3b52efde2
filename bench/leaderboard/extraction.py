"""The extraction attack before and after each mitigation, in the form in which papers print it:
identified, and actually memorized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.leaderboard.board import Board, Row
from bench.leaderboard.cells import group_order
from bench.records.parts import REFERENCE
from bench.records.record import Score

HEADINGS = (
    (
        "identified",
        (
            "share of memorized prompts whose generations hold a clique: pictures that are all the"
            " same, tile by tile"
        ),
    ),
    (
        "actually memorized",
        (
            "share of memorized prompts that are identified and whose clique's medoid is a copy of"
            " a training picture (plain l2)"
        ),
    ),
    ("by SSCD", "the same, a copy by the copy descriptor's similarity to any training picture"),
    ("precision", "of all flagged prompts, clean ones among them, those that give a copy"),
    (
        "recall",
        (
            "of prompts whose own training picture is among the generations at least as often as a"
            " clique needs, those extracted"
        ),
    ),
    (
        "training pictures",
        (
            "different training pictures extracted: representatives that are copies of each other"
            " count once"
        ),
    ),
    ("clean flagged", "clean prompts among the candidates that are flagged, which is an error"),
)
NAMES = (
    "clique_identified",
    "clique_extracted",
    "clique_extracted_sscd",
    "clique_precision",
    "clique_recall",
    "clique_unique",
    "clique_clean_flagged",
)


@dataclass(frozen=True)
class Extraction:
    """One table: a row a method, `none` first, and the same shares by group of prompts."""

    rows: tuple[tuple[Row, tuple[str, ...]], ...]
    groups: tuple[str, ...]
    by_group: tuple[tuple[Row, tuple[str, ...]], ...]
    operating_point: str


def extraction(board: Board) -> Extraction | None:
    """The table of a board; None when no row of it was attacked."""
    attacked = [row for row in board.rows if NAMES[0] in row.record.attacks]
    if not attacked:
        return None
    # what it was before stands first
    ordered = sorted(attacked, key=lambda row: row.record.method != REFERENCE)
    groups = sorted(
        {group for row in ordered for group in _score(row, NAMES[1]).groups}, key=group_order
    )
    seeds = ordered[0].record.seeds
    return Extraction(
        rows=tuple(
            (
                row,
                tuple(
                    _cell(_score(row, name)) + _undecided(_score(row, name), name) for name in NAMES
                ),
            )
            for row in ordered
        ),
        groups=tuple(groups),
        by_group=tuple(
            (row, tuple(_share(_score(row, NAMES[1]).groups.get(group)) for group in groups))
            for row in ordered
        ),
        operating_point=next(
            (
                _operating_point(score.details)
                + (f" Counts are means of {seeds} generations." if seeds > 1 else "")
                for row in ordered
                if (score := _score(row, NAMES[0])).details
            ),
            "",
        ),
    )


def _score(row: Row, name: str) -> Score:
    missing = Score(
        value=None,
        unit="",
        higher_is_better=None,
        metric="",
        metric_version=0,
        reason="not measured",
    )
    return row.record.attacks.get(name, missing)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _cell(score: Score) -> str:
    """`8 of 48: 17 % [8, 30]`; a plain count; a dash with nothing to count. Of several generations
    the counts are means, and so may be no whole numbers.
    """
    if score.value is None:
        return "–"
    if not score.unit.startswith("share"):
        return _count(score.value)
    interval = (
        f" [{100 * score.low:.0f}, {100 * score.high:.0f}]"
        if score.low is not None and score.high is not None
        else ""
    )
    each = score.n / (_generations(score) or 1)
    return f"{_count(score.value * each)} of {_count(each)}: {_share(score.value)}{interval}"


def _generations(score: Score) -> int:
    """How many generations have the number."""
    return sum(value is not None for value in score.by_seed)


def _count(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"


def _undecided(score: Score, name: str) -> str:
    """How many searches of all generations ran out of their budget: said once, beside what is
    identified.
    """
    told = score.details.get("unknown")
    # A list where generations differ; else the number of each.
    every = told if isinstance(told, list) else [told] * max(_generations(score), 1)
    unknown = sum(count for count in every if isinstance(count, int))
    return f", {unknown} undecided" if name == NAMES[0] and unknown else ""


def _operating_point(details: dict[str, Any]) -> str:
    """The settings of the attack in one sentence, from what the record says of it."""
    made = details.get("calibration")
    known = isinstance(made, dict) and {"joined", "prompts"} <= made.keys()
    calibrated = (
        f", calibrated: at least two are joined in {made['joined']} of {made['prompts']} other"
        " clean prompts"
        if made and known
        else ""
    )
    return (
        f"{details.get('images')} generations a prompt; two are joined when every one of"
        f" {details.get('tiles')}x{details.get('tiles')} tiles is within {details.get('threshold')}"
        f" (normalised l2 at {details.get('side')} pixels{calibrated}); a clique of"
        f" {details.get('clique')} flags the prompt; a copy is within l2"
        f" {details.get('verification')} of one of {details.get('training')}."
    )
