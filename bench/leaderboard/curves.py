"""Strength curves on a page: replication against utility for each method as it does more and more,
and how much replication is left where utility has fallen by the same amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.leaderboard import charts
from bench.leaderboard.board import Board
from bench.leaderboard.cells import number
from bench.leaderboard.columns import BY_NAME
from bench.records.parts import REFERENCE
from bench.records.sweep import Measured, Point, Sweep
from bench.statistics.curves import At, at_equal_utility

# What every mitigation has to beat: less guidance, and as many weights or neurons taken at random.
CONTROLS = ("guidance", "random_prune", "random_neurons")
LOSSES = (0.01, 0.02, 0.05)  # of clean CLIP below none
MEANS = (
    "what is left where the mean utility has fallen by so much below none, between two strengths"
    " evenly, with a 95 % bootstrap interval over prompts; – where the curve never falls so far"
)


@dataclass(frozen=True)
class Curve:
    """One method's curve, and what is left of replication at each of `LOSSES`."""

    sweep: Sweep
    control: bool
    left: tuple[At | None, ...]


def curves(board: Board) -> list[Curve]:
    """The curves of a board, methods before controls; of those that differ in their seeds alone,
    that with most.
    """
    most: dict[str, int] = {}
    for sweep in board.sweeps:
        most[sweep.label] = max(sweep.seeds, most.get(sweep.label, 0))
    found = [
        Curve(sweep, sweep.method in CONTROLS, _left(sweep))
        for sweep in board.sweeps
        if sweep.seeds == most[sweep.label]
    ]
    return sorted(found, key=lambda curve: (curve.control, curve.sweep.label))


def _left(sweep: Sweep) -> tuple[At | None, ...]:
    """What is left at each of `LOSSES`, over the prompts that all points have."""
    points, design = sweep.measured(), sweep.design or {}
    tables, units = [], []
    for name in (sweep.replication, sweep.utility):
        values = [point.per_prompt[name] for point in points]
        shared = sorted(set.intersection(*(set(means) for means in values)))
        tables.append(np.array([[means[prompt] for prompt in shared] for means in values]))
        units.append(design[name].design.units(shared) if name in design else None)
    known = None if sweep.design is None else (units[0], units[1])
    return tuple(at_equal_utility(tables[0], tables[1], LOSSES, units=known))


def generations(board: Board, found: Sequence[Curve]) -> str:
    """A sentence on how many generations the points of curves are of, where the rows of the table
    are of another number; else empty.
    """
    rows = {row.record.seeds for row in board.rows}
    if not found or len(rows | {curve.sweep.seeds for curve in found}) == 1:
        return ""
    by_seeds: dict[int, list[str]] = {}
    for curve in found:
        by_seeds.setdefault(curve.sweep.seeds, []).append(curve.sweep.label)
    points = [
        f"{', '.join(labels)} of {_times(seeds)}" if len(by_seeds) > 1 else f"of {_times(seeds)}"
        for seeds, labels in by_seeds.items()
    ]
    return f"Points of curves are {'; '.join(points)}; rows of the table of {_times(*rows)}."


def _times(*seeds: int) -> str:
    """`1 generation`, `1 to 3 generations`."""
    least, most = min(seeds), max(seeds)
    counted = f"{least}" if least == most else f"{least} to {most}"
    return f"{counted} generation{'' if most == 1 else 's'}"


def cell(at: At | None) -> str:
    """`0.123 [0.100, 0.150]`, or a dash."""
    return "–" if at is None else f"{number(at[0], 3)} [{number(at[1], 3)}, {number(at[2], 3)}]"


def headings(found: Sequence[Curve]) -> list[str]:
    """Of the table of what is left, in the words of the first curve's scores."""
    replication, utility = (
        plain_name(name) for name in (found[0].sweep.replication, found[0].sweep.utility)
    )
    return [f"{replication} at {utility} −{loss:g}" for loss in LOSSES]


def plain_name(name: str) -> str:
    """A score's heading without its arrow."""
    return BY_NAME[name].heading.rstrip(" ↑↓") if name in BY_NAME else name


def chart(board: Board, found: Sequence[Curve]) -> dict[str, Any]:
    """What the template draws, empty without curves: utility across (more to the right),
    replication upwards, a line a method from `none` on, its points with both intervals. A method
    has the look that its first row has in the other charts.
    """
    if not found:
        return {}
    measured = [(curve, curve.sweep.measured()) for curve in found]
    across, up = (
        charts.Axis(start, end, charts.ticks(*_range(measured, which), wanted))
        for which, start, end, wanted in (
            ("utility", charts.LEFT, charts.WIDTH - charts.RIGHT, 7),
            ("replication", charts.HEIGHT - charts.BOTTOM, charts.TOP, 6),
        )
    )
    looks = _looks(board, found)
    rows: dict[str, int] = {}
    for place, row in enumerate(board.rows):
        rows.setdefault(row.record.method, place)
    lines: list[dict[str, Any]] = []
    for curve, points in measured:
        marks = [_mark(curve.sweep, point, across, up) for point in points]
        lines.append(
            {
                "label": curve.sweep.label,
                "method": curve.sweep.method,
                "row": rows.get(curve.sweep.method),
                "look": looks[curve.sweep.method],
                "control": curve.control,
                "points": marks,
            }
        )
    _name_ends(lines)
    return {
        "x_name": plain_name(found[0].sweep.utility),
        "y_name": plain_name(found[0].sweep.replication),
        "x_ticks": across.marks(),
        "y_ticks": up.marks(),
        "lines": lines,
    }


def _looks(board: Board, found: Sequence[Curve]) -> dict[str, charts.Look]:
    """The look of each curve by method: that of its first row, one that no row has where it has no
    row, and for controls grey, told apart by shape and dash.
    """
    drawn = charts.looks(board.rows)
    looks = {
        row.record.method: look
        for row, look in reversed(list(zip(board.rows, drawn, strict=True)))
        if row.record.method != REFERENCE
    }
    methods = [curve.sweep.method for curve in found if not curve.control]
    for method in sorted(set(methods) - looks.keys()):
        looks[method] = charts.next_look([*drawn, *looks.values()])
    controls = [curve.sweep.method for curve in found if curve.control]
    return looks | {
        method: charts.Look("ref", 1 + place % (charts.SHAPES - 1), 1 + place % (charts.DASHES - 1))
        for place, method in enumerate(controls)
    }


def _name_ends(lines: Sequence[dict[str, Any]]) -> None:
    """Give each line a `name`: place, anchor and text of its method beside its last point, or None
    where there is no room.
    """
    points = [(point["x"], point["y"]) for line in lines for point in line["points"]]
    ends, last = {}, -1
    for line in lines:
        last += len(line["points"])
        ends[last] = charts.cut_name(line["method"])
    names = charts.place_labels(points, ends, charts.FRAME)
    for line, end in zip(lines, ends, strict=True):
        line["name"] = names.get(end)


def _score(sweep: Sweep, point: Point, which: str) -> Measured:
    return point.scores[sweep.utility if which == "utility" else sweep.replication]


def _range(measured: Sequence[tuple[Curve, Sequence[Point]]], which: str) -> tuple[float, float]:
    scores = [_score(curve.sweep, point, which) for curve, points in measured for point in points]
    bounds = [b for score in scores for b in (score.value, score.low, score.high) if b is not None]
    return min(bounds), max(bounds)


def _mark(sweep: Sweep, point: Point, across: charts.Axis, up: charts.Axis) -> dict[str, Any]:
    utility, replication = (_score(sweep, point, which) for which in ("utility", "replication"))
    strength = "none" if point.strength is None else f"{sweep.field} {point.strength:g}"
    return {
        "x": across(utility.value),
        "y": up(replication.value),
        "across": _places(across, utility),
        "up": _places(up, replication),
        "title": (
            f"{sweep.method}, {strength}: {plain_name(sweep.replication)}"
            f" {number(replication.value, 3)}, {plain_name(sweep.utility)}"
            f" {number(utility.value, 3)}"
        ),
    }


def _places(axis: charts.Axis, score: Measured) -> tuple[float, float] | None:
    if score.low is None or score.high is None:
        return None
    return axis(score.low), axis(score.high)
