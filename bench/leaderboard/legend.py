"""What a column means, exactly: its definition with the thresholds and models that its numbers were
made with.
"""

from __future__ import annotations

from typing import Any

from bench.leaderboard.board import Board
from bench.leaderboard.columns import Column
from bench.records.parts import REFERENCE, flat

PARETO = (
    "no other row is clearly better in copies (SSCD where prompts have no labels), CLIP of clean"
    " prompts or evaluations and clearly worse in none of them, by paired intervals"
)
RANK = (
    "the ranks in the order of the table that a row may have, all rows together with 95 %"
    " confidence (paired bootstrap over prompts, all pairs at once)"
)
HOLDS = (
    "attackers who meet the mitigation, measured: `api` may only generate; `weights` holds the"
    " model as edited, and what a method does by hooks, prompts, noise or guidance is not in it"
)


def definition(board: Board, column: Column) -> str:
    """Meaning, operating point, threat model, version: one sentence each."""
    rows = sorted((*board.rows, *board.reported), key=lambda row: row.record.method != REFERENCE)
    scores = [score for row in rows if (score := row.score(column))]
    score = next((score for score in scores if score.value is not None), scores[0])
    point = ", ".join(f"{name} {value}" for name, value in operating_point(score.details))
    threat = f" Threat model: {column.threat}." if column.threat else ""
    return (
        f"{column.meaning}.{f' At {point}.' if point else ''}{threat} Metric {score.metric},"
        f" version {score.metric_version}."
    )


def operating_point(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings that are single values, by name; a digest by its first 12 digits."""
    found = []
    for name, value in sorted(flat(details).items()):
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, int | float):
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
        elif isinstance(value, str):
            text = value[:12] if "sha256" in name else value
        else:
            continue
        found.append((name.replace("_", " "), text))
    return found
