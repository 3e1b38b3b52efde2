"""A board as plain numbers: CSV for tables, JSON for programs. One row a run."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from bench.base.csv_cells import csv_cell
from bench.leaderboard.board import Board, Row, columns_of
from bench.leaderboard.grouped import group_values


def rows_of(board: Board) -> list[dict[str, Any]]:
    """The rows of a board as dicts: what a row stands for, then for every column `<score>`,
    `<score>_low`, `_high`, `_n`, `_by_seed`, and `_by_group` where prompts have groups; for all but
    costs also `_difference`, `_difference_low` and `_difference_high`. Numbers are rounded to six
    decimals.
    """
    columns = columns_of(board)
    by_group = {
        column.name
        for column in columns
        if any(
            score.groups for row in (*board.rows, *board.reported) if (score := row.score(column))
        )
    }
    rows = []
    for row, measured_by in (
        *((row, "the board") for row in board.rows),
        *((row, "self-reported") for row in board.reported),
    ):
        cells = _identity(row) | {"measured_by": measured_by}
        for column in columns:
            score, difference = row.score(column), row.difference(column)
            cells[column.name] = _round(score.value if score else None)
            cells[f"{column.name}_low"] = _round(score.low if score else None)
            cells[f"{column.name}_high"] = _round(score.high if score else None)
            cells[f"{column.name}_n"] = score.n if score else 0
            cells[f"{column.name}_by_seed"] = (
                [None if value is None else _round(value) for value in score.by_seed]
                if score
                else []
            )
            if column.name in by_group:
                cells[f"{column.name}_by_group"] = group_values(score)
            if column.part != "cost":
                for suffix, value in zip(
                    ("difference", "difference_low", "difference_high"),
                    difference or (None, None, None),
                    strict=True,
                ):
                    cells[f"{column.name}_{suffix}"] = _round(value)
        rows.append(cells)
    return rows


def _identity(row: Row) -> dict[str, Any]:
    record = row.record
    return {
        "method": record.method,
        "parameters": record.parameters,
        "where": record.where,
        "needs": record.needs,
        "holds_against": record.holds_against or [],
        "seeds": record.seeds,
        "rank_low": row.ranks[0] if row.ranks else None,
        "rank_high": row.ranks[1] if row.ranks else None,
        "pareto": row.pareto,
        "run": record.run,
    }


def as_json(board: Board) -> str:
    return json.dumps(rows_of(board), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(board: Board) -> str:
    """The table as CSV: lists as words or numbers with spaces between, parameters as JSON, an empty
    cell for a number that was not measured.
    """
    rows = rows_of(board)
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in cells.items()} for cells in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A cell of the CSV."""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return " ".join(map(str, value))
    return csv_cell(" ".join(value) if isinstance(value, list) else value)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
