"""Where the marks of a page's charts stand: plain numbers and texts, which the template draws as
SVG and escapes.

Lengths are units of the chart's view box. Nothing here computes a statistic: values and intervals
come from the records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.leaderboard.board import Board, Row
from bench.leaderboard.cells import cell, group_order, number
from bench.leaderboard.columns import BY_NAME, Column
from bench.records.parts import REFERENCE
from bench.records.record import Score

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

HUES, SHAPES, DASHES = 8, 8, 4  # colours, shapes and dashes of the style sheet
WIDTH, HEIGHT = 680, 460
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 20, 50  # margins
FRAME: Box = (LEFT, TOP - 8, WIDTH - RIGHT, HEIGHT - BOTTOM)  # where names of points may stand
INSET = 24  # from the margins to the first and the last group
# rows beyond these have no name beside their point; the legend and the tooltip say it
LABELLED = 40
NAMED = 12  # groups that have their name below the axis; of more, every second or third
CHARACTER, LINE = 6.1, 13.0  # a letter of a point's name, and its line
FARTHEST = 1e9  # what an axis shows; a record may hold any number
LONGEST = 27  # letters of a name beside a point

# lower is better
ACROSS = tuple(BY_NAME[name] for name in ("copies", "sscd", "memorized_ratio", "clique_extracted"))
UPWARDS = tuple(BY_NAME[name] for name in ("clip_score_clean", "clip_score"))  # higher is better
BARS = tuple(
    BY_NAME[name]
    for name in (
        "time_ratio_clean",
        "time_ratio",
        "nfe_per_image_clean",
        "nfe_per_image",
        "fit_nfe",
    )
)


class Look(NamedTuple):
    """How a row is drawn: a colour of the style sheet (a number, or `ref`, grey), the shape of its
    marks, and the dash of its line (0: none).
    """

    hue: str
    shape: int
    dash: int


def looks(rows: Sequence[Row]) -> list[Look]:
    """The look of each row, the same in every chart. `none` is grey and its line dashed.

    A method has one colour. Whoever shares a colour differs in shape and dash as long as there are
    any left: so 24 methods differ in colour and shape, in colour and dash, and most neighbours in
    all three.
    """
    by_method = looks_of({row.record.method for row in rows} - {REFERENCE})
    used = Counter(by_method.values())
    seen: set[str] = set()
    references = 0
    result = []
    for row in rows:
        method = row.record.method
        if method == REFERENCE:
            result.append(Look("ref", references % SHAPES, 1 + references % (DASHES - 1)))
            references += 1
        elif method not in seen:
            seen.add(method)
            result.append(by_method[method])
        else:
            look = _free_look(by_method[method].hue, by_method[method].shape, used)
            used[look] += 1
            result.append(look)
    return result


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """The look of each method's first row, by the order of their names."""
    found: dict[str, Look] = {}
    used: Counter[Look] = Counter()
    for place, method in enumerate(sorted(methods)):
        hue, times = place % HUES, place // HUES
        found[method] = _free_look(str(hue), hue + 3 * times, used)
        used[found[method]] += 1
    return found


def next_look(taken: Sequence[Look]) -> Look:
    """A look for one more method: of the colour that is taken least."""
    used = Counter(taken)
    often = Counter(look.hue for look in taken)
    hue = min(range(HUES), key=lambda number: (often[str(number)], number))
    return _free_look(str(hue), hue, used)


def _free_look(hue: str, shape: int, used: Mapping[Look, int]) -> Look:
    """The look of this colour that is told best from those in use: another shape first, another
    dash next; of equals, the first from `shape` on.
    """
    same = [(look, times) for look, times in used.items() if look.hue == hue]

    def likeness(look: Look) -> tuple[int, int, int, int, int]:
        return (
            sum(times for other, times in same if other.shape == look.shape),
            sum(times for other, times in same if other.dash == look.dash),
            sum(times for other, times in same if other == look),
            (look.shape - shape) % SHAPES,
            look.dash,
        )

    return min((Look(hue, s, d) for s in range(SHAPES) for d in range(DASHES)), key=likeness)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, from left to right and each once: less of the first number
    and more of the second is better.
    """
    found: list[Point] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return found


def step_line(points: Sequence[Point], right: float, bottom: float) -> list[Point]:
    """The border of what some point reaches: from `bottom` up to the first point of the front, then
    by steps to `right`.
    """
    line: list[Point] = []
    level = bottom
    for x, y in front(points):
        line += [(x, level), (x, y)]
        level = y
    return [*line, (right, level)] if line else []


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, steps of 1, 2 or 5 times a power of
    ten, of which about `wanted` fill the range.
    """
    from matplotlib.ticker import MaxNLocator  # 0.1 s, which only pages with charts need

    low, high = max(low, -FARTHEST), min(high, FARTHEST)
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, low + 0.5
    values = MaxNLocator(nbins=wanted, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [round(float(value), 12) + 0.0 for value in values]


def scatters(board: Board, label: Callable[[Row], str]) -> list[dict[str, Any]]:
    """One chart for each pair of columns that some row has; the first is the one to show."""
    return [
        _scatter(board, x, y, label)
        for y in _measured(board, UPWARDS)
        for x in _measured(board, ACROSS)
    ]


def _measured(board: Board, columns: Sequence[Column]) -> list[Column]:
    return [
        column
        for column in columns
        if any((score := row.score(column)) and score.value is not None for row in board.rows)
    ]


@dataclass(frozen=True)
class Axis:
    """Values laid out between two places of the view box; its ticks are values."""

    start: float
    end: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        return round(self.start + (self.end - self.start) * (value - first) / (last - first), 1)

    def marks(self) -> list[tuple[float, str]]:
        """Place and text of every tick."""
        return [(self(value), f"{value:g}") for value in self.ticks]

    def interval(self, score: Score) -> tuple[float, float] | None:
        """The places of its bounds, where it has both."""
        if score.low is None or score.high is None:
            return None
        return self(score.low), self(score.high)


@dataclass(frozen=True)
class _Measured:
    """A row that has both scores of a chart; `place` is its number in the table."""

    place: int
    row: Row
    across: Score
    up: Score
    value: Point


def _scatter(board: Board, x: Column, y: Column, label: Callable[[Row], str]) -> dict[str, Any]:
    """What the template draws: points with their intervals, names and tooltips, ticks, and the line
    of the Pareto front.
    """
    shown = _measured_in_both(board, x, y)
    axis_x = Axis(LEFT, WIDTH - RIGHT, _ticks_of([each.across for each in shown], 7))
    axis_y = Axis(HEIGHT - BOTTOM, TOP, _ticks_of([each.up for each in shown], 6))
    values = [each.value for each in shown]
    best = set(front(values))
    points: list[dict[str, Any]] = [
        {
            "row": each.place,
            "x": axis_x(each.value[0]),
            "y": axis_y(each.value[1]),
            "front": each.value in best,
            "across": axis_x.interval(each.across),
            "up": axis_y.interval(each.up),
            "title": (
                f"{label(each.row)}: {_plain(x)} {cell(each.across, x.decimals)}, {_plain(y)}"
                f" {cell(each.up, y.decimals)}"
            ),
        }
        for each in shown
    ]
    # the reference and the front are named first, as long as there is room
    first = sorted(
        range(len(shown)),
        key=lambda i: (shown[i].row.record.method != REFERENCE, not points[i]["front"], i),
    )[:LABELLED]
    names = place_labels(
        [(point["x"], point["y"]) for point in points],
        {i: cut_name(label(shown[i].row)) for i in first},
        FRAME,
    )
    for i, point in enumerate(points):
        point["label"] = names.get(i)
    line = step_line(values, axis_x.ticks[-1], axis_y.ticks[0])
    return {
        "x": x.name,
        "y": y.name,
        "x_name": _plain(x),
        "y_name": _plain(y),
        "points": points,
        "x_ticks": axis_x.marks(),
        "y_ticks": axis_y.marks(),
        "line": [(axis_x(across), axis_y(up)) for across, up in line],
    }


def _measured_in_both(board: Board, x: Column, y: Column) -> list[_Measured]:
    found = []
    for place, row in enumerate(board.rows):
        across, up = row.score(x), row.score(y)
        if across and up and across.value is not None and up.value is not None:
            found.append(_Measured(place, row, across, up, (across.value, up.value)))
    return found


def _ticks_of(scores: Sequence[Score], wanted: int) -> list[float]:
    """Ticks over the values and the intervals of scores."""
    bounds = [bound for score in scores for bound in (score.value, score.low, score.high)]
    known = [bound for bound in bounds if bound is not None]
    return ticks(min(known), max(known), wanted) if known else [0.0, 1.0]


def cut_name(text: str) -> str:
    """A name as it stands beside a point."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip(" ,(=") + "…"


def _plain(column: Column) -> str:
    return column.heading.rstrip(" ↑↓")


def place_labels(
    points: Sequence[Point], texts: dict[int, str], frame: Box
) -> dict[int, tuple[float, float, str, str]]:
    """A place beside each point for its text, in the order of `texts`, that covers no point and no
    other text.

    Returns x, baseline y, SVG anchor and text by index; a point without a free place is left out.
    """
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    found = {}
    for index, text in texts.items():
        x, y = points[index]
        wide = CHARACTER * len(text)
        for dx, dy, anchor in (
            (9, 0, "start"),
            (-9, 0, "end"),
            (7, -11, "start"),
            (7, 11, "start"),
            (-7, -11, "end"),
            (-7, 11, "end"),
            (0, -15, "middle"),
            (0, 15, "middle"),
            (12, -24, "start"),
            (12, 24, "start"),
            (-12, -24, "end"),
            (-12, 24, "end"),
        ):
            left = x + dx - {"start": 0.0, "end": wide, "middle": wide / 2}[anchor]
            box = (left, y + dy - LINE / 2, left + wide, y + dy + LINE / 2)
            inside = (
                box[0] >= frame[0] + 2
                and box[1] >= frame[1]
                and box[2] <= frame[2]
                and box[3] <= frame[3] - 2
            )
            if inside and not any(
                box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
            ):
                taken.append(box)
                found[index] = (round(x + dx, 1), round(y + dy + 4, 1), anchor, text)
                break
    return found


def bars(board: Board) -> dict[str, Any]:
    """Costs as bars from 0 to 100 in the order of the table, with the range where there is one and
    the place of `none`; empty without costs.

    A range that would leave the chart by far is cut, and its end marked; the text beside the bar
    says it in full.
    """
    columns = [_bars_of(board, column) for column in _measured(board, BARS)]
    return {"columns": columns} if columns else {}


def _bars_of(board: Board, column: Column) -> dict[str, Any]:
    scores = [row.score(column) for row in board.rows]
    most = _end_of_bars([score for score in scores if score])
    own = next(
        (
            score.value
            for row, score in zip(board.rows, scores, strict=True)
            if row.record.method == REFERENCE and score
        ),
        None,
    )
    base = 1.0 if column.name.startswith("time_ratio") else own
    return {
        "name": column.heading,
        "meaning": column.meaning,
        "base": _percent(base, most) if base else None,
        "lines": [_bar(score, most, column.decimals) for score in scores],
    }


def _end_of_bars(scores: Sequence[Score]) -> float:
    """The value at which a chart of bars ends: a little beyond the largest value, and up to a
    quarter more for ranges.
    """
    values = [score.value for score in scores if score.value is not None]
    ranges = [score.high for score in scores if score.high is not None]
    most = 1.12 * max([*values, 1e-9])
    return max(most, min(max([*ranges, 0.0]), 1.25 * most))


def _bar(score: Score | None, most: float, decimals: int) -> dict[str, Any]:
    if score is None or score.value is None:
        return {"value": None, "range": None, "cut": False, "text": "–"}
    both = score.low is not None and score.high is not None
    return {
        "value": _percent(score.value, most),
        "range": (
            (_percent(score.low or 0, most), _percent(score.high or 0, most)) if both else None
        ),
        "cut": score.high is not None and score.high > most,
        "text": cell(score, decimals),
    }


def _percent(value: float, most: float) -> float:
    return round(100 * min(max(value / most, 0.0), 1.0), 2)


def groups(board: Board, label: Callable[[Row], str]) -> dict[str, Any]:
    """SSCD by group of prompts as lines, a row each; empty where no row has groups."""
    scores = [
        (place, row, score)
        for place, row in enumerate(board.rows)
        if (score := row.record.scores.get("sscd")) and score.groups
    ]
    names = sorted({name for _, _, score in scores for name in score.groups}, key=group_order)
    if not names:
        return {}
    values = [value for _, _, score in scores for value in score.groups.values()]
    at_y = Axis(HEIGHT - BOTTOM, TOP, ticks(min(0.0, *values), max(values), 5))
    across = [
        round(LEFT + INSET + (WIDTH - RIGHT - LEFT - 2 * INSET) * i / max(len(names) - 1, 1), 1)
        for i in range(len(names))
    ]
    lines: list[dict[str, Any]] = []
    for place, row, score in scores:
        points = [
            (
                x,
                at_y(score.groups[name]),
                f"{label(row)}: SSCD {number(score.groups[name], 3)} at {name[:LONGEST]}",
            )
            for name, x in zip(names, across, strict=True)
            if name in score.groups
        ]
        lines.append({"row": place, "points": points})
    # drawn last, above the others
    lines.sort(key=lambda line: board.rows[line["row"]].record.method == REFERENCE)
    every = math.ceil(len(names) / NAMED)
    shown = list(zip(across, names, strict=True))[::every]
    return {"names": shown, "ticks": at_y.marks(), "lines": lines}
