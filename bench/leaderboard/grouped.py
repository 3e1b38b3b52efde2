"""Scores by group of prompts: verbatim and template prompts, say, which papers report apart because
a mean over both hides either.

One table a score, a row a method. Values, intervals and counts are those of the records; older
records have values only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.leaderboard.board import Board, Row, columns_of
from bench.leaderboard.cells import group_order, number
from bench.leaderboard.columns import COLUMNS, Column
from bench.records.parts import REFERENCE
from bench.records.record import Score

FEW = 16  # groups, beyond which a table of them cannot be read
# of the built-in scores; what a plug-in declares has a table too
ALWAYS = ("sscd", "memorized_ratio")


@dataclass(frozen=True)
class Grouped:
    """One score by group: the number of prompts of each group (None where no record states it), and
    the cells of each row in the order of `groups`.
    """

    column: Column
    groups: tuple[str, ...]
    prompts: tuple[int | None, ...]
    rows: tuple[tuple[Row, tuple[str, ...]], ...]


def grouped(board: Board) -> list[Grouped]:
    """The tables by group of a board, with `none` first in each. There is none where prompts have
    no groups, only one, or more than `FEW`.
    """
    built_in = {column.name for column in COLUMNS}
    columns = [
        column
        for column in columns_of(board)
        if column.part == "scores" and (column.name in ALWAYS or column.name not in built_in)
    ]
    found = (
        _table(column, sorted(board.rows, key=lambda row: row.record.method != REFERENCE))
        for column in columns
    )
    return [table for table in found if 2 <= len(table.groups) <= FEW]


def _table(column: Column, rows: list[Row]) -> Grouped:
    scores = [(row, score) for row in rows if (score := row.score(column)) and score.groups]
    groups = sorted({group for _, score in scores for group in score.groups}, key=group_order)
    return Grouped(
        column,
        tuple(groups),
        tuple(_prompts([score for _, score in scores], group) for group in groups),
        tuple(
            (row, tuple(_cell(score, group, column.decimals) for group in groups))
            for row, score in scores
        ),
    )


def _prompts(scores: list[Score], group: str) -> int | None:
    counts = {score.group_prompts[group] for score in scores if group in score.group_prompts}
    return counts.pop() if len(counts) == 1 else None


def _cell(score: Score, group: str, decimals: int) -> str:
    low, high = score.group_intervals.get(group, (None, None))
    interval = f" [{number(low, decimals)}, {number(high, decimals)}]" if low is not None else ""
    return number(score.groups.get(group), decimals) + interval


def group_values(score: Score | None) -> dict[str, dict[str, Any]]:
    """A score by group for programs: value, interval and number of prompts of each group; null
    where a record does not state it.
    """
    if score is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for group in sorted(score.groups, key=group_order):
        low, high = score.group_intervals.get(group, (None, None))
        found[group] = {
            "value": score.groups[group],
            "low": low,
            "high": high,
            "prompts": score.group_prompts.get(group),
        }
    return found
