"""Experiments in Markdown, as CSV and as a page with curves."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from bench.base.csv_cells import csv_cell
from bench.leaderboard import charts
from bench.leaderboard.cells import escape, number
from bench.leaderboard.experiments import ExperimentBoard
from bench.leaderboard.templating import template
from bench.records.experiment import Cell, Column, Experiment, ResultTable

APART = (
    "What stands here says something of training, on models made for the question. It is no row of"
    " the board of methods, and compares with none."
)
BOUNDS = "Brackets: 95 % intervals."
HEADINGS = ("record", "table", "row", "column", "value", "low", "high", "n", "note")


def text(cell: Cell, column: Column) -> str:
    """`0.523 [0.480, 0.561] (note)`; the note alone, or a dash, where there is no number."""
    if cell.value is None:
        return cell.note or "–"
    shown = number(cell.value, column.decimals)
    if cell.low is not None and cell.high is not None:
        bounds = ", ".join(number(bound, column.decimals) for bound in (cell.low, cell.high))
        shown += f" [{bounds}]"
    return f"{shown} ({cell.note})" if cell.note else shown


def settings_in_words(record: Experiment) -> str:
    """`epochs 400, width 32, ...`, sorted."""
    return ", ".join(f"{name} {_plain(value)}" for name, value in sorted(record.settings.items()))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return "/".join(f"{name} {item:g}" for name, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def made_with(record: Experiment) -> str:
    """On which model and pictures, and where."""
    where = record.environment.get("device_name") or record.environment.get("device", "?")
    return (
        f"Model {record.model} (sha256 {record.model_sha256[:12]}), pictures"
        f" {record.data_sha256[:12]}; measured on {where}."
    )


def shown_tables(record: Experiment) -> list[ResultTable]:
    """Its tables that have a column."""
    return [table for table in record.tables if table.columns]


def markdown(board: ExperimentBoard) -> str:
    """Every record with what was asked, what the paper claims, and its tables."""
    lines = [f"# {escape(board.title)} ({escape(board.data)})", "", APART]
    for record in board.records:
        lines += ["", f"## {escape(record.label)}", ""]
        lines += [line for sentence in record.about for line in (escape(sentence, 2000), "")]
        if record.claim:
            lines += [f"*The paper* ({escape(record.paper)}): {escape(record.claim, 2000)}", ""]
        if record.found:
            lines += [f"**Found here**: {escape(' '.join(record.found), 2000)}", ""]
        for table in shown_tables(record):
            lines += [f"### {escape(table.title)}", ""]
            lines += [_row([table.rows_are, *(column.heading for column in table.columns)])]
            lines += ["|" + "---|" * (1 + len(table.columns))]
            lines += [
                _row([label, *(text(c, k) for c, k in zip(cells, table.columns, strict=True))])
                for label, cells in zip(table.labels, table.cells, strict=True)
            ]
            lines += ["", f"{escape(table.means, 2000)} {BOUNDS}".strip(), ""]
        lines += [
            escape(made_with(record)),
            "",
            f"Settings: {escape(settings_in_words(record), 2000)}.",
        ]
    if board.damaged:
        lines += ["", "Cannot be used:", "", *(f"- {escape(why)}" for why in board.damaged)]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def as_csv(board: ExperimentBoard) -> str:
    """One line a number, with its bounds."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADINGS)
    for record in board.records:
        for table in record.tables:
            for label, cells in zip(table.labels, table.cells, strict=True):
                for cell, column in zip(cells, table.columns, strict=True):
                    numbers = [_rounded(v) for v in (cell.value, cell.low, cell.high)]
                    found = [record.label, table.name, label, column.heading, *numbers]
                    writer.writerow(map(csv_cell, [*found, cell.n, cell.note]))
    return stream.getvalue()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def html(board: ExperimentBoard) -> str:
    """The page: for each record its curves, then its tables. It asks nothing of the network."""
    content: str = template("experiment.html").render(
        board=board,
        apart=APART,
        bounds=BOUNDS,
        width=charts.WIDTH,
        height=charts.HEIGHT,
        left=charts.LEFT,
        bottom=charts.HEIGHT - charts.BOTTOM,
        records=[
            {
                "record": record,
                "settings": settings_in_words(record),
                "made_with": made_with(record),
                "tables": [_drawn(table) for table in shown_tables(record)],
            }
            for record in board.records
        ],
    )
    return content + "\n"


def _drawn(table: ResultTable) -> dict[str, Any]:
    return {
        "table": table,
        "rows": [
            [label, *(text(c, k) for c, k in zip(cells, table.columns, strict=True))]
            for label, cells in zip(table.labels, table.cells, strict=True)
        ],
        "chart": chart(table),
    }


def chart(table: ResultTable) -> dict[str, Any]:
    """What the template draws of a table with curves, empty for others: a line a column, its points
    with their intervals. A logarithmic axis is one of log(1 + x), which has a place for 0.
    """
    curves = table.curves
    if curves is None:
        return {}
    numbers = [float(label) for label in table.labels]
    places = [math.log1p(value) if curves.logarithmic else value for value in numbers]
    least, most = min(places), max(places)
    across = charts.Axis(
        charts.LEFT + charts.INSET,
        charts.WIDTH - charts.RIGHT - charts.INSET,
        [least, most] if most > least else [least - 0.5, least + 0.5],
    )
    chosen = [column.heading for column in table.columns]
    values = [
        bound
        for name in curves.columns
        for label in table.labels
        for bound in _bounds(table.cell(label, name))
    ]
    level = [curves.chance] if curves.chance is not None else []
    known = [*values, *level] or [0.0, 1.0]
    up = charts.Axis(
        charts.HEIGHT - charts.BOTTOM, charts.TOP, charts.ticks(min(known), max(known), 6)
    )
    lines: list[dict[str, Any]] = []
    for name in curves.columns:
        column = table.columns[chosen.index(name)]
        points = []
        for label, place in zip(table.labels, places, strict=True):
            cell = table.cell(label, name)
            if cell.value is None:
                continue
            both = cell.low is not None and cell.high is not None
            points.append(
                {
                    "x": across(place),
                    "y": up(cell.value),
                    "range": (up(cell.low or 0.0), up(cell.high or 0.0)) if both else None,
                    "title": f"{name} at {label}: {text(cell, column)}",
                }
            )
        lines.append({"name": name, "hue": len(lines) % 8, "points": points})
    return {
        "x_name": curves.x_name,
        "y_name": curves.y_name,
        "x_ticks": [
            (across(place), label) for place, label in zip(places, table.labels, strict=True)
        ],
        "y_ticks": up.marks(),
        "lines": lines,
        "chance": up(curves.chance) if curves.chance is not None else None,
    }


def _bounds(cell: Cell) -> list[float]:
    return [bound for bound in (cell.value, cell.low, cell.high) if bound is not None]


def in_words(record: Experiment) -> str:
    """One record for the terminal."""
    lines = [f"{record.title}: {record.label}"]
    for table in shown_tables(record):
        lines += ["", table.title]
        headings = [table.rows_are, *(column.heading for column in table.columns)]
        rows = [headings, *_drawn(table)["rows"]]
        widths = [max(len(row[place]) for row in rows) for place in range(len(headings))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    return "\n".join(lines)
