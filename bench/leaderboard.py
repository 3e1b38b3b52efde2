"""From records to tables and pages: a pure function of the records, without clock or network, so that a check is an exact diff."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.board import COLUMNS, REFERENCE, TUNED_MEANS, Board, Column, Row, columns_of, make_boards, protocol
from bench.cells import cell, difference_cell, heading, number
from bench.errors import UserError
from bench.extraction import HEADINGS, Extraction, extraction
from bench.latex import latex
from bench.published import load_published
from bench.published import markdown as published_markdown
from bench.record import RunRecord, load_records
from bench.store import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

PUBLISHED = "published.csv"  # beside the records: figures from papers, which have a page of their own
README_COLUMNS = ("sscd", "memorized_ratio", "clip_score", "clip_score_clean", "fid", "clique_extracted", "time_ratio", "nfe_per_image", "fit_nfe")


def make_pages(records: Path, readme: Path | None = None) -> dict[str, bytes]:
    """Every file of the leaderboards by name, and `../README.md` with its tables where one is given.

    Raises `UserError` for an unreadable record or when there are none.
    """
    loaded = load_records(records)
    if not loaded:
        raise UserError(f"no records below {records}; make one with `bench run --method none`")
    boards = make_boards(loaded)
    pages = {"../README.md": with_tables(readme.read_text(encoding="utf-8"), boards).encode()} if readme else {}
    figures = records.parent / PUBLISHED
    if figures.is_file():
        pages["published.md"] = published_markdown(load_published(figures)).encode()
    for board in boards:
        pages[f"{board.suite}.md"] = markdown(board).encode()
        pages[f"{board.suite}.csv"] = table(board).to_csv(index=False, lineterminator="\n").encode()
        pages[f"{board.suite}.json"] = (json.dumps(table(board).to_dict("records"), indent=1, ensure_ascii=False, default=_plain) + "\n").encode()
        pages[f"{board.suite}.html"] = html(board).encode()
        columns = [column for column in columns_of(board) if column.name in README_COLUMNS]
        pages[f"{board.suite}.tex"] = latex(board, columns, [heading(board, column) for column in columns]).encode()
    return pages


def write_pages(pages: dict[str, bytes], out: Path) -> list[Path]:
    for name, content in pages.items():
        write_atomically(out / name, content)
    return [out / name for name in pages]


def check_pages(pages: dict[str, bytes], out: Path) -> list[str]:
    """One readable line for every file that is missing, stray or not what the records give."""
    problems = []
    for name, content in pages.items():
        path = out / name
        if not path.exists():
            problems.append(f"{path} is missing: run `bench leaderboard`")
        elif path.read_bytes() != content:
            problems.append(f"{path} differs from its records: {_first_difference(path.read_bytes().decode(errors='replace'), content.decode())}")
    known = {Path(name).suffix for name in pages}
    stray = [path for path in sorted(out.glob("*")) if path.suffix in known and path.name not in pages and path.name not in ("README.md", PUBLISHED)]
    return problems + [f"{path} belongs to no records" for path in stray]


def _first_difference(there: str, expected: str) -> str:
    changed = [
        line
        for line in difflib.unified_diff(there.splitlines(), expected.splitlines(), lineterm="", n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    return " | ".join(line[:160] for line in changed[:2]) or "line endings"


def table(board: Board) -> pd.DataFrame:
    """The numbers at full precision: one row a run, `<score>`, `<score>_low`, `<score>_high`, `<score>_difference` and its interval."""
    rows = []
    for row in board.rows:
        record = row.record
        cells: dict[str, Any] = {
            "method": record.method, "parameters": json.dumps(record.parameters, sort_keys=True), "where": record.where,
            "needs": " ".join(record.needs), "pareto": row.pareto, "run": record.run,
        }  # fmt: skip
        for column in COLUMNS:
            score, difference = row.score(column), row.difference(column)
            cells[column.name] = _round(score.value if score else None)
            cells[f"{column.name}_low"] = _round(score.low if score else None)
            cells[f"{column.name}_high"] = _round(score.high if score else None)
            cells[f"{column.name}_n"] = score.n if score else 0
            if column.part != "cost":
                for suffix, value in zip(("difference", "difference_low", "difference_high"), difference or (None, None, None), strict=True):
                    cells[f"{column.name}_{suffix}"] = _round(value)
        rows.append(cells)
    return pd.DataFrame(rows, dtype=object)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _plain(value: Any) -> Any:
    return value.item()


def markdown(board: Board) -> str:
    """The page of a suite in Markdown: numbers with 95 % intervals, below each the difference to `none`, and what the columns mean."""
    columns = columns_of(board)
    lines = [f"# {board.suite}", ""]
    if board.rows:
        lines += [*markdown_table(board, columns), "", "Rows by SSCD. Brackets: 95 % intervals that resample prompts; Δ: paired difference to `none`.", ""]
        lines += [f"- **{heading(board, column)}**: {column.meaning}" for column in columns]
        lines += ["- **Pareto**: no other row is as good in SSCD, CLIP and time together"]
        lines += [f"- {TUNED_MEANS}"] if any(row.record.tuning for row in board.rows) else []
        attacked = extraction(board)
        if attacked:
            group_name = board.rows[0].record.group_name
            lines += ["", "## Extraction attack, before and after", "", *extraction_table(attacked), "", _escape(attacked.operating_point), ""]
            lines += [f"- **{name}**: {meaning}" for name, meaning in HEADINGS]
            if attacked.groups:
                by = f"Actually memorized, by {_escape(group_name)} (a copy of any training picture counts):"
                lines += ["", by, "", *_pipes(["method", *attacked.groups])]
                lines += ["| " + " | ".join([_escape(row.label), *cells]) + " |" for row, cells in attacked.by_group]
    if board.apart:
        lines += ["", "Not ranked:", ""]
        lines += [f"- {_escape(Row(record, None).label)} (run {record.run}): {reason}" for record, reason in board.apart]
    return "\n".join(lines) + "\n"


def markdown_table(board: Board, columns: Sequence[Column]) -> list[str]:
    lines = ["| " + " | ".join(["method", "acts on", *(heading(board, column) for column in columns), "Pareto"]) + " |"]
    lines.append("|" + "---|" * (len(columns) + 3))
    for row in board.rows:
        cells = []
        for column in columns:
            text, change = cell(row.score(column), column.decimals), difference_cell(row.difference(column), column.decimals)
            cells.append(f"{text}<br>Δ {change}" if change else text)
        lines.append("| " + " | ".join([_escape(row.label), _escape(row.record.where), *cells, "●" if row.pareto else ""]) + " |")
    return lines


def extraction_table(attacked: Extraction) -> list[str]:
    rows = ["| " + " | ".join([_escape(row.label), *cells]) + " |" for row, cells in attacked.rows]
    return [*_pipes(["method", *(name for name, _ in HEADINGS)]), *rows]


def _pipes(headings: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(_escape(name) for name in headings) + " |", "|" + "---|" * len(headings)]


def with_tables(readme: str, boards: list[Board]) -> str:
    """A README with the tables that it marks: the lines between `<!-- board NAME -->`, or `<!-- extraction NAME -->`, and `<!-- end -->`."""
    for board in boards:
        attacked = extraction(board)
        columns = [column for column in columns_of(board) if column.name in README_COLUMNS]
        readme = _between(readme, f"<!-- board {board.suite} -->", markdown_table(board, columns))
        readme = _between(
            readme, f"<!-- extraction {board.suite} -->", [*extraction_table(attacked), "", _escape(attacked.operating_point)] if attacked else []
        )
    return readme


def _between(text: str, mark: str, lines: list[str]) -> str:
    before, marked, rest = text.partition(mark + "\n")
    end = "<!-- end -->"
    return before + marked + "\n".join([*lines, end]) + rest.partition(end)[2] if marked and end in rest else text


def _escape(text: str) -> str:
    """Text that cannot leave its table cell or become HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def html(board: Board) -> str:
    """One self-contained page: the table, replication by group, sample pictures. Everything from records is escaped by the template."""
    columns = columns_of(board)
    shown = [
        {
            "label": row.label, "where": row.record.where, "paper": row.record.paper, "pareto": row.pareto,
            "cells": [(cell(row.score(c), c.decimals), difference_cell(row.difference(c), c.decimals)) for c in columns],
        }
        for row in board.rows
    ]  # fmt: skip
    return (
        _templates()
        .get_template("leaderboard.html")
        .render(
            board=board,
            headings=[(heading(board, column), column.meaning) for column in columns],
            rows=shown,
            groups=_groups(board),
            gallery=_gallery(board),
            attacked=extraction(board),
            attack_headings=HEADINGS,
            exhibits=[(row.label, row.record.exhibits) for row in _reference_first(board) if row.record.exhibits],
            group_name=board.rows[0].record.group_name if board.rows else "group",
            tuned=TUNED_MEANS if any(row.record.tuning for row in board.rows) else "",
            machines=sorted({str(row.record.environment.get("device_name", "unknown")) for row in board.rows}),
        )
    )


def _groups(board: Board) -> dict[str, Any]:
    """SSCD by group of prompts, and where its points stand in the chart of the page (420 by 200, from 0 to 1)."""
    names: list[str] = []
    for row in board.rows:
        score = row.record.scores.get("sscd")
        names += [name for name in (score.groups if score else {}) if name not in names]
    names.sort(key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    across = [60 + (340 * i / max(len(names) - 1, 1)) for i in range(len(names))]
    lines = []
    for row in board.rows:
        score = row.record.scores.get("sscd")
        if score and score.groups:
            points = [
                (round(x, 1), round(180 - 160 * min(max(score.groups[name], 0), 1), 1)) for name, x in zip(names, across, strict=True) if name in score.groups
            ]
            lines.append({"label": row.label, "values": [number(score.groups.get(name), 2) for name in names], "points": points})
    return {"names": [(name, round(x, 1)) for name, x in zip(names, across, strict=True)], "lines": lines}


def _gallery(board: Board) -> list[dict[str, Any]]:
    """By prompt: the training picture where the suite shares it, and each row's first image with the same seed."""
    pictures: dict[tuple[str, int], dict[str, Any]] = {}
    for row in board.rows:
        for thumbnail in row.record.thumbnails:
            place = pictures.setdefault(
                (thumbnail.prompt_id, thumbnail.seed), {"prompt": thumbnail.prompt, "group": thumbnail.group, "reference": thumbnail.reference, "by_row": {}}
            )
            place["by_row"][row.record.run] = thumbnail.png
    order = sorted(pictures, key=lambda key: (int(pictures[key]["group"]) if pictures[key]["group"].isdecimal() else 0, key), reverse=True)
    return [pictures[key] | {"images": [(row.label, pictures[key]["by_row"].get(row.record.run)) for row in _reference_first(board)]} for key in order]


def _reference_first(board: Board) -> list[Row]:
    """What the others are compared with stands first."""
    return sorted(board.rows, key=lambda row: row.record.method != REFERENCE)


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("bench", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def row_table(record: RunRecord, others: list[RunRecord]) -> Table:
    """A finished run beside `none` of the same protocol, for the terminal."""
    from rich.table import Table

    same = [r for r in others if r.suite == record.suite and r.status == "complete" and protocol(r) == protocol(record) and r.method == REFERENCE]
    row = Row(record, same[0] if same else None)
    beside = row.reference is not None and record.method != REFERENCE
    shown = Table(title=f"{row.label} on {record.suite}", title_justify="left")
    for name in ("", record.method, *(("none", "difference") if beside else ())):
        shown.add_column(name)
    for column in COLUMNS:
        score = row.score(column)
        if score is None:
            continue
        name = f"{column.heading} (n={score.n})" if column.name == "fid" else column.heading
        text = cell(score, column.decimals) if score.value is not None else f"– ({score.reason})"
        cells = (
            [cell(Row(row.reference, None).score(column), column.decimals), difference_cell(row.difference(column), column.decimals)]
            if beside and row.reference
            else []
        )
        shown.add_row(name, text, *cells)
    for name, mean in record.facts.get("memorized", {}).items():
        shown.add_row(f"{name} (reported)", number(mean, 3))
    if not beside and record.method != REFERENCE:
        shown.caption = f"no record of `none` under this protocol yet: bench run --method none --suite {record.suite}"
    return shown
