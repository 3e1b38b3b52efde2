"""From records to tables and pages: a pure function of the records, without clock or network, so that a check is an exact diff.

Rows of one table share a protocol (the suite's fingerprint) and metric versions. Rows that do not are listed apart and
never ranked. Rows stand in the order of replication, named so; there is no composite score.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bench import stats
from bench.errors import UserError
from bench.record import RunRecord, Score, load_records
from bench.store import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

REFERENCE = "none"
TUNED_MEANS = (
    "† parameters chosen on the suite's `fit` prompts by `bench tune`; the record has the rule and how many settings met it (‡ none did: the nearest was taken)"
)


@dataclass(frozen=True)
class Column:
    """One number of the table: where it is in a record, its heading, decimals, and what it means."""

    name: str
    heading: str
    decimals: int
    meaning: str
    cost: bool = False


COLUMNS = (
    Column("sscd", "SSCD ↓", 3, "mean similarity of a generation to its training picture under a copy descriptor, held-out memorized prompts"),
    Column("sscd_p95", "SSCD p95 ↓", 3, "95th percentile of the same similarity over images"),
    Column("memorized_ratio", "memorized ↓", 3, "share of images whose similarity exceeds the suite's threshold"),
    Column("diversity", "diversity ↑", 3, "one minus the mean similarity between images of one memorized prompt"),
    Column("clip_score", "CLIP ↑", 3, "cosine of picture and original prompt, memorized prompts"),
    Column("clip_score_clean", "CLIP clean ↑", 3, "cosine of picture and prompt, clean prompts"),
    Column("fid", "FID ↓", 2, "Frechet distance to real pictures at the stated number of images; not comparable across numbers"),
    Column("time_ratio", "time ×", 2, "seconds per image against no mitigation, measured in turn on one machine; from the fastest to the slowest round", True),
    Column("nfe_per_image", "NFE", 1, "model evaluations per image, counted (one row through the UNet is one)", True),
    Column("fit_seconds", "fit s", 1, "seconds of offline fitting", True),
    Column("fit_nfe", "fit NFE", 0, "model evaluations of offline fitting", True),
)
README_COLUMNS = ("sscd", "memorized_ratio", "clip_score", "clip_score_clean", "fid", "time_ratio", "nfe_per_image", "fit_nfe")


@dataclass(frozen=True)
class Row:
    """A record beside the reference row of its protocol."""

    record: RunRecord
    reference: RunRecord | None
    pareto: bool = False

    @cached_property
    def label(self) -> str:
        """The method, with the parameters that are not its defaults."""
        shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in self.record.changed.items()}
        given = ", ".join(f"{key}={value}" for key, value in sorted(shown.items()))
        return self.record.method + (f" ({given})" if given else "") + self.tuned

    @property
    def tuned(self) -> str:
        tuning = self.record.tuning
        return "" if tuning is None else " †" if tuning.get("kept") else " ‡"

    def score(self, column: Column) -> Score | None:
        return (self.record.cost if column.cost else self.record.scores).get(column.name)

    def difference(self, column: Column) -> tuple[float, float | None, float | None] | None:
        """Difference to the reference row: paired by prompt with an interval where prompts have values, else the plain difference."""
        score = self.score(column)
        if self.reference is None or self.record.method == REFERENCE or column.cost or score is None or score.value is None:
            return None
        mine, theirs = self.record.per_prompt.get(column.name), self.reference.per_prompt.get(column.name)
        if mine and theirs:
            return stats.paired_difference(mine, theirs)
        base = self.reference.scores.get(column.name)
        return (score.value - base.value, None, None) if base and base.value is not None else None


@dataclass(frozen=True)
class Board:
    """One suite's table, and the records that cannot stand in it with the reason."""

    suite: str
    rows: tuple[Row, ...]
    apart: tuple[tuple[RunRecord, str], ...]


def make_boards(records: list[RunRecord]) -> list[Board]:
    """One board for every suite that has records, rows by replication."""
    return [_board(suite, [record for record in records if record.suite == suite]) for suite in sorted({record.suite for record in records})]


def _board(suite: str, records: list[RunRecord]) -> Board:
    newest = {record.method: max(r.method_version for r in records if r.method == record.method) for record in records}
    apart: list[tuple[RunRecord, str]] = []
    whole: list[RunRecord] = []
    for record in records:
        reason = (
            f"status {record.status}" if record.status != "complete"
            else f"limited to {record.limit} prompts of every role" if record.limit
            else f"version {record.method_version} of the method; {newest[record.method]} is the newest" if record.method_version < newest[record.method]
            else ""
        )  # fmt: skip
        if reason:
            apart.append((record, reason))
        else:
            whole.append(record)
    if not whole:
        return Board(suite, (), tuple(apart))
    # The protocol of the table is the newest version's; among equals the one with most rows.
    sizes = Counter(_protocol(record) for record in whole)
    current = max(sizes, key=lambda protocol: (protocol[0], protocol[1], sizes[protocol], protocol[2]))
    apart += [(record, "another protocol or metric version") for record in whole if _protocol(record) != current]
    rows = [record for record in whole if _protocol(record) == current]
    reference = next((record for record in rows if record.method == REFERENCE), None)
    front = _pareto(rows)
    ordered = sorted(rows, key=lambda record: (_sort_value(record), record.method, record.run))
    return Board(suite, tuple(Row(record, reference, record.run in front) for record in ordered), tuple(apart))


def _protocol(record: RunRecord) -> tuple[int, tuple[tuple[str, int], ...], str]:
    versions = {score.metric: score.metric_version for score in (*record.scores.values(), *record.cost.values())}
    return record.suite_version, tuple(sorted(versions.items())), record.suite_fingerprint


def _sort_value(record: RunRecord) -> float:
    score = record.scores.get("sscd")
    return score.value if score and score.value is not None else float("inf")


def _pareto(records: list[RunRecord]) -> set[str]:
    """Runs that no other beats in replication, alignment and time together."""
    points = {}
    for record in records:
        parts = (record.scores.get("sscd"), record.scores.get("clip_score"), record.cost.get("time_ratio"))
        values = [part.value for part in parts if part and part.value is not None]
        if len(values) == 3:
            # The reference takes its own time by definition; what was measured of it against itself is noise.
            points[record.run] = (-values[0], values[1], -1.0 if record.method == REFERENCE else -values[2])
    return {run for run, on_front in zip(points, stats.pareto_front(list(points.values())), strict=True) if on_front}


def make_pages(records: Path, readme: Path | None = None) -> dict[str, bytes]:
    """Every file of the leaderboards by name, and `../README.md` with its tables where one is given.

    Raises `UserError` for an unreadable record or when there are none.
    """
    loaded = load_records(records)
    if not loaded:
        raise UserError(f"no records below {records}; make one with `bench run --method none`")
    boards = make_boards(loaded)
    pages = {"../README.md": with_tables(readme.read_text(encoding="utf-8"), boards).encode()} if readme else {}
    for board in boards:
        pages[f"{board.suite}.md"] = markdown(board).encode()
        pages[f"{board.suite}.csv"] = table(board).to_csv(index=False, lineterminator="\n").encode()
        pages[f"{board.suite}.json"] = (json.dumps(table(board).to_dict("records"), indent=1, ensure_ascii=False, default=_plain) + "\n").encode()
        pages[f"{board.suite}.html"] = html(board).encode()
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
    stray = [path for path in sorted(out.glob("*")) if path.suffix in known and path.name not in pages and path.name != "README.md"]
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
            if not column.cost:
                for suffix, value in zip(("difference", "difference_low", "difference_high"), difference or (None, None, None), strict=True):
                    cells[f"{column.name}_{suffix}"] = _round(value)
        rows.append(cells)
    return pd.DataFrame(rows, dtype=object)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _plain(value: Any) -> Any:
    return value.item()


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


def markdown(board: Board) -> str:
    """The page of a suite in Markdown: numbers with 95 % intervals, below each the difference to `none`, and what the columns mean."""
    columns = _columns(board)
    lines = [f"# {board.suite}", ""]
    if board.rows:
        lines += [*markdown_table(board, columns), "", "Rows by SSCD. Brackets: 95 % intervals that resample prompts; Δ: paired difference to `none`.", ""]
        lines += [f"- **{heading(board, column)}**: {column.meaning}" for column in columns]
        lines += ["- **Pareto**: no other row is as good in SSCD, CLIP and time together"]
        lines += [f"- {TUNED_MEANS}"] if any(row.record.tuning for row in board.rows) else []
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


def _columns(board: Board) -> list[Column]:
    return [column for column in COLUMNS if any(row.score(column) for row in board.rows)]


def with_tables(readme: str, boards: list[Board]) -> str:
    """A README with the table of every suite that it marks: the lines between `<!-- board NAME -->` and `<!-- end -->`."""
    for board in boards:
        start, end = f"<!-- board {board.suite} -->\n", "<!-- end -->"
        before, marked, rest = readme.partition(start)
        if marked and end in rest:
            columns = [column for column in _columns(board) if column.name in README_COLUMNS]
            readme = before + start + "\n".join(markdown_table(board, columns)) + "\n" + end + rest.partition(end)[2]
    return readme


def _escape(text: str) -> str:
    """Text that cannot leave its table cell or become HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def html(board: Board) -> str:
    """One self-contained page: the table, replication by group, sample pictures. Everything from records is escaped by the template."""
    columns = _columns(board)
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
    names.sort(key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
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
    order = sorted(pictures, key=lambda key: (int(pictures[key]["group"]) if pictures[key]["group"].isdigit() else 0, key), reverse=True)
    rows = sorted(board.rows, key=lambda row: row.record.method != REFERENCE)  # what the others are compared with stands first
    return [pictures[key] | {"images": [(row.label, pictures[key]["by_row"].get(row.record.run)) for row in rows]} for key in order]


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("bench", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def row_table(record: RunRecord, others: list[RunRecord]) -> Table:
    """A finished run beside `none` of the same protocol, for the terminal."""
    from rich.table import Table

    same = [r for r in others if r.suite == record.suite and r.status == "complete" and _protocol(r) == _protocol(record) and r.method == REFERENCE]
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
