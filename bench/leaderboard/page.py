"""The page of a suite: answers, a table to sort and filter, charts, pictures and definitions in one
HTML file that asks nothing of the network.

A pure function of the board, without clock, so that a check is an exact diff. Everything from a
record is hostile: the template escapes it, invisible characters are shown as escapes, long texts
are cut, and the page's policy runs its own script and no other. Pictures stand on a page beside it
(`pictures_page.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from bench.leaderboard import charts
from bench.leaderboard.board import TUNED_MEANS, Board, Row, columns_of, order_column
from bench.leaderboard.cells import cell, difference_cell, heading, number, spread
from bench.leaderboard.columns import TUNING, Column
from bench.leaderboard.curves import MEANS, chart, curves, generations, headings
from bench.leaderboard.curves import cell as curve_cell
from bench.leaderboard.extraction import HEADINGS, extraction
from bench.leaderboard.front import each_against_each
from bench.leaderboard.glance import (
    CLEAN,
    CLEARLY_BETTER,
    CLEARLY_WORSE,
    COSTS,
    KEPT,
    NO_INTERVAL,
    NO_REFERENCE,
    Answer,
    copies_others,
    glance,
    no_extra,
    no_fitting,
    only_none,
    verdict,
)
from bench.leaderboard.grouped import grouped
from bench.leaderboard.known_pictures import COLUMNS as KNOWN_COLUMNS
from bench.leaderboard.known_pictures import chart as chart_of_known
from bench.leaderboard.known_pictures import known_attacks
from bench.leaderboard.legend import PARETO, RANK, operating_point
from bench.leaderboard.measured import measured
from bench.leaderboard.pictures_page import FOLDER, page_parts, pictures_of, places_of
from bench.leaderboard.templating import TITLE, package_file, plain, template
from bench.records.parts import REFERENCE

SHOWN = 6  # prompts, and methods beside none, of which a board shows pictures on its own page
# every other score is one of quality
REPLICATION = (
    "copies",
    "sscd_copied",
    "copies_sometimes",
    "copies_never",
    "any_copy",
    "any_copy_clean",
    "sscd",
    "sscd_p95",
    "memorized_ratio",
    "diversity",
)
# of the compact table
MATRIX = 40  # rows, beyond which a table of each against each cannot be read
KEY = (
    "copies",
    "sscd",
    "memorized_ratio",
    "clip_score_clean",
    "clique_extracted",
    "time_ratio_clean",
    "nfe_per_image_clean",
    "nfe_per_image",
    "fit_nfe",
    TUNING,
)
AGAINST = {"api": "API", "weights": "weights"}
THREATS = {
    "api": "attacker with the API",
    "weights": "attacker with the weights",
    "inputs": "attacker with the weights, who feeds the served model",
}


def html(board: Board) -> str:
    """The page. The same board gives the same bytes, on every machine."""
    columns = sorted(columns_of(board), key=lambda column: _part(column)[0])
    reference = next((row for row in board.rows if row.record.method == REFERENCE), None)
    scales = _scales(board, columns)
    cards, pictures = glance(board), pictures_of(board)
    answering = [answer.row for card in cards for answer in card.answers]
    others = [row for row in board.rows if row.record.method != REFERENCE]
    named = places_of([*answering, *others], board)[:SHOWN]
    named += [place for place, row in enumerate(board.rows) if row.record.method == REFERENCE]
    group_name = board.rows[0].record.group_name if board.rows else "group"
    found_curves = curves(board)
    suite = measured(board.suite, board.rows[0].record.suite_version) if board.rows else None
    content: str = template("leaderboard.html").render(
        board=board,
        **page_parts(package_file("leaderboard.js")),
        facts=_facts(board),
        measured=suite.sentences if suite else "",
        cards=[(card, [answer_shown(answer) for answer in card.answers]) for card in cards],
        cost_headings=[name for name, _ in COSTS],
        alone=only_none(board),
        columns=[_column(board, column) for column in columns],
        parts=_spans(columns),
        rows=[_row(row, columns, reference, scales) for row in board.rows],
        reported=[_row(row, columns, reference, {}) for row in board.reported],
        looks=charts.looks(board.rows),
        where=sorted({row.record.where for row in board.rows if row.record.method != REFERENCE}),
        scatters=charts.scatters(board, _label),
        bars=charts.bars(board),
        by_group=charts.groups(board, _label),
        grouped=grouped(board),
        matrix=_matrix(board),
        curves=chart(board, found_curves),
        curve_headings=headings(found_curves) if found_curves else [],
        curve_rows=[
            (curve.sweep.label, curve.control, [curve_cell(at) for at in curve.left])
            for curve in found_curves
        ],
        curve_means=MEANS,
        curve_generations=generations(board, found_curves),
        group_name=group_name,
        pareto=PARETO,
        order=order_column(board).plain,
        order_means=order_column(board).meaning,
        rank_means=RANK,
        pictures_page=f"{FOLDER}/{board.suite}.html" if pictures.sheets or pictures.finds else "",
        gallery=pictures.gallery.some(SHOWN, named),
        prompts_with_pictures=len(pictures.gallery.lines),
        finds=sum(len(found) for _, _, found in pictures.finds),
        attacked=extraction(board),
        attack_headings=HEADINGS,
        places={_identity(row): place for place, row in enumerate(board.rows)},
        identity=_identity,
        known=[(attack, chart_of_known(board, attack)) for attack in known_attacks(board)],
        known_columns=KNOWN_COLUMNS,
        threats=THREATS,
        apart=[(Row(record, None).label, record, reason) for record, reason in board.apart],
        definitions=[_definition(board, column, reference) for column in columns],
        intervals=sorted({row.record.intervals for row in board.rows}),
        tuned=(
            TUNED_MEANS.replace("`", "")
            if any(row.record.tuning is not None for row in (*board.rows, *board.reported))
            else ""
        ),
        machines=_machines(board),
    )
    return content


def _matrix(board: Board) -> list[list[dict[str, str]]]:
    """Every row against every other, as a mark and the numbers behind it; empty for few rows or
    very many.
    """
    if not 3 <= len(board.rows) <= MATRIX:
        return []
    return [
        [_compared(difference) for difference in line]
        for line in each_against_each([row.record for row in board.rows])
    ]


def _compared(difference: tuple[float, float, float] | None) -> dict[str, str]:
    if difference is None:
        return {"mark": "", "side": "", "words": ""}
    _, low, high = difference
    mark, side = ("▼", "better") if high < 0 else ("▲", "worse") if low > 0 else ("·", "")
    return {"mark": mark, "side": side, "words": difference_cell(difference, 3)}


def picture_of(board: Board) -> str | None:
    """The chart of replication against alignment (of clean prompts where they were measured) as an
    SVG file; None where no row has both.
    """
    drawn = charts.scatters(board, _label)
    if not drawn:
        return None
    by_axes = {(chart["x"], chart["y"]): chart for chart in drawn}
    first = (("copies", "clip_score_clean"), ("sscd", "clip_score_clean"))
    chosen = next((by_axes[axes] for axes in first if axes in by_axes), drawn[0])
    content: str = template("scatter.svg").render(
        s=chosen,
        looks=charts.looks(board.rows),
        suite=board.suite,
        style=Markup(package_file("charts.css")),
    )
    return content


def _identity(row: Row) -> tuple[str, str]:
    return row.record.method, row.record.run


def _label(row: Row) -> str:
    return plain(row.label)


def _part(column: Column) -> tuple[int, str]:
    """Where a column stands: its place among the groups of headings, and the group's name."""
    if column.part != "scores":
        return (2, "attacks") if column.part == "attacks" else (3, "cost")
    return (0, "replication") if column.name in REPLICATION else (1, "quality")


def _spans(columns: Sequence[Column]) -> list[tuple[str, int]]:
    names = [_part(column)[1] for column in columns]
    return [(name, names.count(name)) for name in dict.fromkeys(names)]


def _column(board: Board, column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "heading": heading(board, column),
        "meaning": column.meaning,
        "key": column.name in KEY,
        "threat": THREATS.get(column.threat, ""),
        "part": _part(column)[1],
    }


def _scales(board: Board, columns: Sequence[Column]) -> dict[str, float]:
    """The largest value of each column that has bars: replication and attacks, whose least value is
    0.
    """
    scales = {}
    for column in columns:
        values = [
            score.value
            for row in board.rows
            if (score := row.score(column)) and score.value is not None
        ]
        if (
            _part(column)[1] in ("replication", "attacks")
            and column.higher_is_better is False
            and values
            and min(values) >= 0
            and max(values) > 0
        ):
            scales[column.name] = max(values)
    return scales


def _row(
    row: Row, columns: Sequence[Column], reference: Row | None, scales: dict[str, float]
) -> dict[str, Any]:
    record = row.record
    against = (
        "–"
        if record.holds_against is None
        else " + ".join(AGAINST[name] for name in record.holds_against)
    )
    return {
        "label": row.label,
        "record": record,
        "reference": record.method == REFERENCE,
        "pareto": row.pareto,
        "rank": row.rank if row.ranks else "",
        "needs": ", ".join(name.replace("_", " ") for name in record.needs),
        "against": against,
        "words": plain(f"{row.label} {record.paper}", 300).lower(),
        "weights": "weights" in (record.holds_against or ()),
        "no_fitting": no_fitting(row),
        "no_extra": no_extra(row, reference),
        "cells": [_cell(row, column, scales.get(column.name)) for column in columns],
    }


def _cell(row: Row, column: Column, most: float | None) -> dict[str, Any]:
    """Value, interval, difference and spread over seeds as texts; the number to sort by; which side
    of 0 the difference is on.
    """
    score = row.score(column)
    if score is None or score.value is None:
        return {
            "value": "–",
            "number": "",
            "reason": plain(score.reason, TITLE) if score else "",
            "part": _part(column)[1],
            "key": column.name in KEY,
        }
    value = number(score.value, column.decimals)
    difference = row.difference(column)
    change, _, change_interval = difference_cell(difference, column.decimals).partition(" ")
    if (over := row.paired(column)) not in (None, score.prompts):
        change_interval = f"{change_interval} over {over} prompts".strip()
    side = ""
    if (
        difference
        and difference[1] is not None
        and difference[2] is not None
        and column.higher_is_better is not None
    ):
        low, high = difference[1], difference[2]
        side = (
            ""
            if low <= 0 <= high
            else "better"
            if (low > 0) == column.higher_is_better
            else "worse"
        )
    return {
        "value": value,
        "interval": cell(score, column.decimals)[len(value) + 1 :],
        "number": repr(score.value),
        "reason": "",
        "change": change,
        "change_interval": change_interval,
        "side": side,
        "seeds": spread(score, column.decimals),
        "bar": round(100 * score.value / most, 1) if most else None,
        "part": _part(column)[1],
        "key": column.name in KEY,
    }


def _facts(board: Board) -> dict[str, Any]:
    """What the head says: counts of methods, prompts, images and generations, and the suite's
    version.
    """
    rows = board.rows
    if not rows:
        return {}
    first = min(
        (row.record for row in rows), key=lambda record: (record.method != REFERENCE, record.run)
    )
    prompts = {role: found.prompts for role, found in first.samples.items()} or {
        role: score.prompts
        for role, name in (("memorized", "sscd"), ("clean", "clip_score_clean"), ("quality", "fid"))
        if (score := first.scores.get(name)) and score.prompts
    }
    return {
        "methods": len({row.record.method for row in rows} - {REFERENCE}),
        "settings": sum(row.record.method != REFERENCE for row in rows),
        "prompts": list(prompts.items()),
        "all_prompts": sum(prompts.values()),
        "images": sum(first.images.values()),
        "by_role": list(first.images.items()),
        "version": first.suite_version,
        "fingerprint": first.suite_fingerprint,
        "seeds": first.seeds,
        "rows": len(rows),
        "reference": any(row.record.method == REFERENCE for row in rows),
    }


def answer_shown(answer: Answer) -> dict[str, Any]:
    """The texts of an answer: lead, name, value and interval of its column, the value of none, the
    change, the verdict, harms, and what comes next.
    """
    row, column = answer.row, answer.column
    base = Row(row.reference, None).score(column) if row.reference else None
    beside = []
    for other in answer.beside:
        change = difference_cell(row.difference(other), other.decimals)
        score = row.score(other)
        if change or score:
            name = other.heading.rstrip(" ↑↓")
            beside.append(
                f"{name} Δ {change}" if change else f"{name} {cell(score, other.decimals)}"
            )
    change, name = (
        difference_cell(row.difference(column), column.decimals),
        column.heading.rstrip(" ↑↓"),
    )
    harms = [
        other.heading.rstrip(" ↑↓")
        for other in dict.fromkeys((CLEAN, *answer.beside))
        if verdict(row, other) == CLEARLY_WORSE and abs((row.difference(other) or (0,))[0]) > KEPT
    ]
    value, _, interval = cell(row.score(column), column.decimals).partition(" ")
    verdict_text = answer.verdict.replace("than none", f"than none in {name}")
    return {
        "lead": _lead(answer),
        "row": row,
        "name": name,
        "value": value,
        "interval": interval,
        "none": cell(base, column.decimals) if base else "",
        "harm": "; ".join(
            [
                *([f"clearly worse than none in {', '.join(harms)}"] if harms else []),
                *(["copies other training pictures instead"] if copies_others(row) else []),
            ]
        ),
        "change": change,
        "verdict": verdict_text,
        "beside": "; ".join(beside),
        "sure": answer.verdict == CLEARLY_BETTER,
        "none_clearly": none_clearly(answer),
        "others": [
            (other.label, number(score.value, column.decimals))
            for other in answer.others[:2]
            if (score := other.score(column))
        ],
        "more": max(len(answer.others) - 2, 0),
    }


def none_clearly(answer: Answer) -> bool:
    """Whether neither the row that answers nor any that comes after it is clearly better than
    none: it is first in the order, and no answer.
    """
    verdicts = [answer.verdict, *(verdict(row, answer.column) for row in answer.others)]
    return not {CLEARLY_BETTER, NO_INTERVAL, NO_REFERENCE} & set(verdicts)


def _lead(answer: Answer) -> str:
    if not none_clearly(answer):
        return answer.lead
    return f"None clearly; {answer.lead[:1].lower()}{answer.lead[1:]}"


def _definition(board: Board, column: Column, reference: Row | None) -> dict[str, Any]:
    """What a column means, with unit, metric and operating point from the reference's record, or
    from the first row that has them.
    """
    rows = ([reference] if reference else []) + list(board.rows) + list(board.reported)
    scores = [score for row in rows if (score := row.score(column))]
    score = next((score for score in scores if score.value is not None), scores[0])
    return {
        "heading": heading(board, column),
        "column": column,
        "score": score,
        "point": operating_point(score.details),
        "threat": THREATS.get(column.threat, ""),
    }


def _machines(board: Board) -> list[str]:
    found = set()
    for row in (*board.rows, *board.reported):
        threads = row.record.environment.get("threads")
        many = (
            f", {threads} thread{'' if threads == 1 else 's'}" if isinstance(threads, int) else ""
        )
        found.add(f"{row.record.environment.get('device_name', 'unknown')}{many}")
    return sorted(found)
