"""Numbers and texts of records as people read them: decimals, intervals, differences, spread over
seeds; and texts that stay text.
"""

from __future__ import annotations

import re

from bench.base.errors import visible
from bench.leaderboard.board import Board
from bench.leaderboard.columns import SIZED, Column
from bench.records.record import Score

LONGEST = 300  # characters of a text in a table
NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


MANY = 3  # decimals


def number(value: float | None, decimals: int, signed: bool = False) -> str:
    """A number for people; an en dash for null; never a negative zero. Where there are more than
    `MANY` decimals, a large number keeps four digits.
    """
    if value is None:
        return "–"
    if decimals > MANY and abs(value) >= 1:
        decimals = max(MANY + 1 - len(str(int(abs(value)))), 0)
    rounded = round(value, decimals) + 0.0
    return f"{rounded:+.{decimals}f}" if signed else f"{rounded:.{decimals}f}"


def cell(score: Score | None, decimals: int) -> str:
    """`0.523 [0.480, 0.561]`, or an en dash. Counts that are the same for every image have no
    brackets.
    """
    if score is None or score.value is None:
        return "–"
    counted = score.unit == "row evaluations" and score.low == score.high
    interval = (
        f" [{number(score.low, decimals)}, {number(score.high, decimals)}]"
        if score.low is not None and not counted
        else ""
    )
    return number(score.value, decimals) + interval


def difference_cell(
    difference: tuple[float, float | None, float | None] | None, decimals: int
) -> str:
    if difference is None:
        return ""
    value, low, high = difference
    interval = (
        f" [{number(low, decimals, True)}, {number(high, decimals, True)}]"
        if low is not None
        else ""
    )
    return number(value, decimals, True) + interval


def heading(board: Board, column: Column) -> str:
    """The column's heading; FID says its number of images."""
    if column.name in SIZED and board.rows:
        score = board.rows[0].score(column)
        return (
            f"{column.heading.removesuffix(' ↓')} (n={score.n}) ↓"
            if score and score.n
            else column.heading
        )
    return column.heading


def spread(score: Score | None, decimals: int) -> str:
    """Least and most over the generations that have the number; empty for one generation."""
    if score is None or len(score.by_seed) < 2:
        return ""
    known = [value for value in score.by_seed if value is not None]
    of = "" if len(known) == len(score.by_seed) else f"{len(known)} of "
    return (
        f"{number(min(known), decimals)} to {number(max(known), decimals)} over"
        f" {of}{len(score.by_seed)} seeds"
    )


def group_order(name: str) -> tuple[bool, int, str]:
    """Groups that are numbers by their number, then the others by name."""
    plain = name.isascii() and name.isdecimal() and len(name) < 20
    return not plain, int(name) if plain else 0, name


def escape(text: str, longest: int = LONGEST) -> str:
    """A record's text for Markdown: it cannot leave its cell, become HTML, a link, a formula, code
    or emphasis, turn what follows around, or fill the page.
    """
    shown = visible(" ".join(text.split()))
    shown = shown if len(shown) <= longest else shown[:longest] + "…"
    shown = re.sub(
        r"[&<>@$]|(?<=www)\.|:(?=//)",
        lambda match: f"&#{ord(match[0])};" if match[0] not in NAMED else NAMED[match[0]],
        shown,
    )
    shown = re.sub(r"[\\|`*\[\]~]", lambda match: "\\" + match[0], shown)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", shown)
