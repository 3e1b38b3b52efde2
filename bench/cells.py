"""Numbers as people read them: decimals, intervals, differences, spread over seeds."""

from __future__ import annotations

from bench.board import Board, Column
from bench.record import Score


def number(value: float | None, decimals: int, signed: bool = False) -> str:
    """A number for people; an en dash for null; never a negative zero."""
    if value is None:
        return "–"
    rounded = round(value, decimals) + 0.0
    return f"{rounded:+.{decimals}f}" if signed else f"{rounded:.{decimals}f}"


def cell(score: Score | None, decimals: int) -> str:
    """`0.523 [0.480, 0.561]`, or an en dash."""
    if score is None or score.value is None:
        return "–"
    interval = f" [{number(score.low, decimals)}, {number(score.high, decimals)}]" if score.low is not None else ""
    return number(score.value, decimals) + interval


def difference_cell(difference: tuple[float, float | None, float | None] | None, decimals: int) -> str:
    if difference is None:
        return ""
    value, low, high = difference
    interval = f" [{number(low, decimals, True)}, {number(high, decimals, True)}]" if low is not None else ""
    return number(value, decimals, True) + interval


def heading(board: Board, column: Column) -> str:
    """The column's heading; FID says its number of images."""
    if column.name == "fid" and board.rows:
        score = board.rows[0].score(column)
        return f"FID (n={score.n}) ↓" if score and score.n else column.heading
    return column.heading
