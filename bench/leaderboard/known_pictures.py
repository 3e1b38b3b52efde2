"""After an attacker who knows the picture: what each attack of that kind gets out of each row,
beside its controls, and how that grows with its effort.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.leaderboard import charts
from bench.leaderboard.board import Board, Row
from bench.leaderboard.cells import cell
from bench.records.record import Score

DECIMALS = 3
ENDING = "_excess"
# What stands in the table, by the ending of a score's name.
COLUMNS = (
    ("plain", "some of as many plain generations", "share of memorized pictures of which some of as"
     " many plain generations of the caption is a copy"),
    ("best", "some attacked", "share of memorized pictures of which some attacked generation is a"
     " copy"),
    ("zero", "no effort", "share of generations of memorized pictures that are copies before any"
     " effort"),
    ("memorized", "attacked", "the same after the effort that the attacker settles on, which no"
     " likeness to the picture told it"),
    ("control", "control", "the same of pictures that the model was never trained on, after the"
     " same effort: what comes of the attack where there is no memory"),
    ("excess", "excess", "attacked less control"),
    ("ceiling", "without mitigation", "attacked, on the model without the mitigation"),
    ("recovered", "recovered", "how much of what the mitigation removed comes back: attacked less"
     " plain, over plain without mitigation less plain; a dash where it removed too little to say"),
    ("any", "any copy", "share of the attacked generations that copy any training picture"),
)  # fmt: skip


@dataclass(frozen=True)
class KnownAttack:
    """One attack: what it is called, what its attacker does (a sentence) and holds, and a row of
    cells for each row of the board that has it, by place in the board.
    """

    item: str
    heading: str
    meaning: str
    threat: str
    rows: tuple[tuple[int, Row, tuple[str, ...]], ...]


def known_attacks(board: Board) -> list[KnownAttack]:
    """The attacks on known pictures that some row of a board has, in the order of their names."""
    items = {item for row in board.rows for item in excesses(row)}
    return [_attack(board, item) for item in sorted(items)]


def excesses(row: Row) -> dict[str, Score]:
    """What each attack on known pictures got out of a row beyond its controls, by attack."""
    return {
        name.removesuffix(ENDING): score
        for name, score in row.record.attacks.items()
        if name.endswith(ENDING) and "curve" in score.details
    }


def strongest(row: Row, threat: str = "") -> tuple[str, Score, int] | None:
    """The attack on known pictures that gets most out of a row beyond its controls, and how many
    such attacks were run on it; `threat`: of that threat model alone. None where none was.

    Whoever holds the weights may also feed the served model, so all attacks count by default.
    """
    found = {
        item: score
        for item, score in excesses(row).items()
        if score.value is not None and threat in ("", score.threat)
    }
    if not found:
        return None
    item = max(found, key=lambda item: found[item].value or 0.0)
    return item, found[item], len(found)


def heading_of(item: str, score: Score) -> str:
    """What an attack is called."""
    return score.shown.heading.removesuffix(" excess") if score.shown else item


def _attack(board: Board, item: str) -> KnownAttack:
    rows = list(_having(board, item))
    first = rows[0][1].record.attacks[item + ENDING]
    shown = first.shown
    return KnownAttack(
        item,
        heading_of(item, first),
        _sentence(shown.meaning.partition(":")[0]) if shown else "",
        first.threat or "",
        tuple((place, row, _cells(row, item)) for place, row in rows),
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def _having(board: Board, item: str) -> Iterator[tuple[int, Row]]:
    for place, row in enumerate(board.rows):
        score = excesses(row).get(item)
        if score and score.value is not None:
            yield place, row


def _cells(row: Row, item: str) -> tuple[str, ...]:
    scores = row.record.attacks
    return tuple(cell(scores.get(f"{item}_{ending}"), DECIMALS) for ending, *_ in COLUMNS)


def chart(board: Board, attack: KnownAttack) -> dict[str, Any]:
    """What the template draws: the share of copies at each mark of effort with its interval, a line
    a row, and dashed the controls of that row.
    """
    curves = [(place, row, *_curve(row, attack.item)) for place, row, _ in attack.rows]
    marks = next(iter(curves))[2]
    up = charts.Axis(charts.HEIGHT - charts.BOTTOM, charts.TOP, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    last = max(len(marks) - 1, 1)
    across = charts.Axis(charts.LEFT + 40, charts.WIDTH - charts.RIGHT - 40, [0.0, float(last)])
    looks = charts.looks(board.rows)
    lines = []
    for place, row, names, by_group in curves:
        if names != marks:
            continue
        for group in ("control", "memorized"):
            points = [
                {
                    "x": across(mark),
                    "y": up(value),
                    "up": (up(low), up(high)),
                    "title": f"{row.label}, {group}, {names[mark]}: {value:.2f}"
                    f" [{low:.2f}, {high:.2f}]",
                }
                for mark, (value, low, high) in enumerate(by_group[group])
            ]
            lines.append(
                {
                    "place": place,
                    "label": row.label,
                    "look": looks[place],
                    "control": group == "control",
                    "points": points,
                }
            )
    return {
        "x_ticks": [(across(mark), name) for mark, name in enumerate(marks)],
        "y_ticks": up.marks(),
        "lines": lines,
    }


def _curve(row: Row, item: str) -> tuple[list[str], dict[str, list[list[float]]]]:
    """The marks, and by group of pictures the share at each with its interval; over several
    generations the mean of the shares, and the widest interval.
    """
    details = row.record.attacks[item + ENDING].details
    given = details["curve"]
    generations: Sequence[dict[str, Any]] = given if isinstance(given, list) else [given]
    return list(details["marks"]), {
        group: [
            [
                sum(point[0] for point in points) / len(points),
                min(point[1] for point in points),
                max(point[2] for point in points),
            ]
            for points in zip(*(curve[group] for curve in generations), strict=True)
        ]
        for group in ("memorized", "control")
    }
