"""A board in Markdown: the page of a suite, and the tables that a README marks."""

from __future__ import annotations

from collections.abc import Sequence

from bench.leaderboard.board import TUNED_MEANS, Board, Row, columns_of, order_column
from bench.leaderboard.cells import cell, difference_cell, escape, heading, spread
from bench.leaderboard.columns import TUNING, Column
from bench.leaderboard.curves import MEANS, curves, generations, headings
from bench.leaderboard.curves import cell as curve_cell
from bench.leaderboard.extraction import HEADINGS, Extraction, extraction
from bench.leaderboard.grouped import Grouped, grouped
from bench.leaderboard.known_pictures import COLUMNS as KNOWN_COLUMNS
from bench.leaderboard.known_pictures import known_attacks
from bench.leaderboard.legend import HOLDS, PARETO, RANK, definition
from bench.leaderboard.measured import measured
from bench.records.parts import PARTS
from bench.records.record import Score

_README = ("copies", "clip_score_clean", "clique_extracted", "dori_excess", "time_ratio_clean")
_SHORT = (
    "copies",
    "sscd",
    "memorized_ratio",
    "any_copy",
    "clip_score",
    "clip_score_clean",
    "recognised",
    "fid",
    "clique_extracted",
    "dori_excess",
    "time_ratio_clean",
    "nfe_per_image_clean",
    "nfe_per_image",
    "fit_nfe",
    TUNING,
)
# What says less than another column does stands in the full tables only, where both are there.
_SAID_BETTER = {"memorized_ratio": "copies", "clip_score": "clip_score_clean"}

TRACK = (
    "Track removal: methods learned from the memorized prompts that are judged here, the named"
    " ones. No row of another track may be compared with these."
)


def readme_columns(board: Board) -> list[Column]:
    """The columns of the table in a README; those of short tables where it has none of these."""
    found = [column for column in columns_of(board) if column.name in _README]
    return found or short_columns(board)


def short_columns(board: Board) -> list[Column]:
    """The columns of short tables, as in LaTeX."""
    columns = columns_of(board)
    there = {column.name for column in columns}
    return [
        column
        for column in columns
        if column.name in _SHORT and _SAID_BETTER.get(column.name) not in there
    ]


def markdown(board: Board) -> str:
    """The page of a suite in Markdown: numbers with 95 % intervals, below each the difference to
    `none`, and what the columns mean.
    """
    columns = columns_of(board)
    lines = [f"# {escape(board.suite)}", "", *([TRACK, ""] if board.removes else [])]
    if board.rows:
        record = board.rows[0].record
        group_name, suite = record.group_name, measured(board.suite, record.suite_version)
        lines += [escape(suite.sentences, 2000), ""] if suite else []
        lines += _main_table(board, columns)
        lines += _strength_curves(board)
        lines += _group_tables(board, group_name)
        lines += _attack(board, group_name)
        lines += _known_pictures(board)
    lines += _self_reported(board, columns)
    lines += _not_measured(board)
    lines += _not_ranked(board)
    return "\n".join(lines) + "\n"


def _main_table(board: Board, columns: Sequence[Column]) -> list[str]:
    """The table and what its columns mean."""
    intervals = " or ".join(sorted({row.record.intervals for row in board.rows}))
    means = (
        f"Rows by {order_column(board).plain}. Brackets: 95 % intervals ({escape(intervals)}); Δ:"
        " paired difference to `none`."
    )
    lines = [*markdown_table(board, board.rows, columns, details=True), "", means, ""]
    lines += [
        f"- **{escape(heading(board, column))}**: {escape(definition(board, column), 2000)}"
        for column in columns
    ]
    lines += [f"- **rank**: {RANK}", f"- **holds against**: {HOLDS}", f"- **Pareto**: {PARETO}"]
    lines += [f"- {TUNED_MEANS}"] if any(row.record.tuning for row in board.rows) else []
    return lines


def _strength_curves(board: Board) -> list[str]:
    """How much replication is left at equal utility, where there are strength curves."""
    found = curves(board)
    if not found:
        return []
    lines = ["", "## At equal utility", ""]
    lines += _pipes(["method (what is varied)", *headings(found)])
    for curve in found:
        name = escape(curve.sweep.label) + (" (control)" if curve.control else "")
        lines.append(_cells([name, *(curve_cell(at) for at in curve.left)]))
    means = f"In each cell {MEANS}. `bench sweep` measures the curves."
    return [*lines, "", " ".join(filter(None, (means, escape(generations(board, found), 2000))))]


def _known_pictures(board: Board) -> list[str]:
    """What attackers get who know the picture, beside their controls."""
    attacks = known_attacks(board)
    if not attacks:
        return []
    lines = ["", "## After an attacker who knows the picture", ""]
    for attack in attacks:
        threat = f" (threat model {escape(attack.threat)})" if attack.threat else ""
        lines += [f"**{escape(attack.heading)}**{threat}. {escape(attack.meaning)}", ""]
        lines += _pipes(["method", *(name for _, name, _ in KNOWN_COLUMNS)])
        lines += [_cells([escape(row.label), *cells]) for _, row, cells in attack.rows]
        lines += [""]
    return [*lines, *(f"- **{name}**: {meaning}." for _, name, meaning in KNOWN_COLUMNS)]


def _group_tables(board: Board, group_name: str) -> list[str]:
    tables = grouped(board)
    if not tables:
        return []
    lines = [
        "",
        f"## By {escape(group_name)}",
        "",
        "Brackets: 95 % intervals over the prompts of a group, where the record has them.",
    ]
    return lines + [line for table in tables for line in _by_group(table, group_name)]


def _attack(board: Board, group_name: str) -> list[str]:
    """The extraction attack before and after each mitigation, where it was run."""
    attacked = extraction(board)
    if not attacked:
        return []
    lines = [
        "",
        "## Extraction attack, before and after",
        "",
        *extraction_table(attacked),
        "",
        escape(attacked.operating_point, 2000),
        "",
        *(f"- **{name}**: {meaning}" for name, meaning in HEADINGS),
    ]
    if attacked.groups:
        by = f"Actually memorized, by {escape(group_name)} (a copy of any training picture counts):"
        lines += ["", by, "", *_pipes(["method", *attacked.groups])]
        lines += [_cells([escape(row.label), *cells]) for row, cells in attacked.by_group]
    return lines


def _self_reported(board: Board, columns: Sequence[Column]) -> list[str]:
    if not board.reported:
        return []
    return [
        "",
        "## Self-reported",
        "",
        (
            "Measured by others under the same protocol and checked for consistency (`bench"
            " submit`), not measured here."
        ),
        "",
        *markdown_table(board, board.reported, columns, details=True),
    ]


def _not_measured(board: Board) -> list[str]:
    lines = [
        f"- {escape(row.label)}, {escape(name)}: {escape(score.reason)}"
        for row in board.rows
        for name, score in _nulls(row)
    ]
    return ["", "Not measured:", "", *lines] if lines else []


def _not_ranked(board: Board) -> list[str]:
    lines = [
        f"- {escape(Row(record, None).label)} (run {record.run}): {escape(reason)}"
        for record, reason in board.apart
    ]
    lines += [f"- {escape(line)}" for line in board.damaged]
    return ["", "Not ranked:", "", *lines] if lines else []


def markdown_table(
    board: Board, rows: Sequence[Row], columns: Sequence[Column], details: bool = False
) -> list[str]:
    """A line for each row; `details` adds what a method needs, whom it holds against, and what each
    score was in the generations apart.
    """
    more = ["needs", "holds against"] if details else []
    lines = _pipes(
        [
            "rank",
            "method",
            "acts on",
            *more,
            *(heading(board, column) for column in columns),
            "Pareto",
        ]
    )
    for row in rows:
        cells = []
        for column in columns:
            score, change = (
                row.score(column),
                difference_cell(row.difference(column), column.decimals),
            )
            seeds = spread(score, column.decimals) if details else ""
            over = (
                f" over {row.paired(column)} prompts"
                if score and row.paired(column) not in (None, score.prompts)
                else ""
            )
            cells.append(
                cell(score, column.decimals)
                + (f"<br>Δ {change}{over}" if change else "")
                + (f"<br>{seeds}" if seeds else "")
            )
        against = row.record.holds_against
        facts = (
            [", ".join(row.record.needs), "–" if against is None else ", ".join(against)]
            if details
            else []
        )
        pareto = "●" if row.pareto else ""
        words = map(escape, (row.rank, row.label, row.record.where, *facts))
        lines.append(_cells([*words, *cells, pareto]))
    return lines


def _by_group(table: Grouped, group_name: str) -> list[str]:
    counted = [
        group + (f" ({count} prompts)" if count is not None else "")
        for group, count in zip(table.groups, table.prompts, strict=True)
    ]
    rows = [_cells([escape(row.label), *cells]) for row, cells in table.rows]
    return [
        "",
        f"**{escape(table.column.heading)}** by {escape(group_name)}",
        "",
        *_pipes(["method", *counted]),
        *rows,
    ]


def _nulls(row: Row) -> list[tuple[str, Score]]:
    """What a complete run could not measure."""
    return [
        (name, score)
        for part in PARTS
        for name, score in sorted(getattr(row.record, part).items())
        if score.value is None
    ]


def extraction_table(attacked: Extraction) -> list[str]:
    rows = [_cells([escape(row.label), *cells]) for row, cells in attacked.rows]
    return [*_pipes(["method", *(name for name, _ in HEADINGS)]), *rows]


def _pipes(headings: Sequence[str]) -> list[str]:
    """The line of headings and the line below it."""
    return [_cells([escape(name) for name in headings]), "|" + "---|" * len(headings)]


def _cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def with_tables(readme: str, boards: list[Board]) -> str:
    """A README with the tables that it marks: the lines between `<!-- board NAME -->`, or `<!--
    extraction NAME -->`, and `<!-- end -->`.
    """
    for board in boards:
        attacked = extraction(board)
        table = markdown_table(board, board.rows, readme_columns(board))
        readme = _between(readme, f"<!-- board {board.suite} -->", table)
        readme = _between(
            readme,
            f"<!-- extraction {board.suite} -->",
            (
                [*extraction_table(attacked), "", escape(attacked.operating_point, 2000)]
                if attacked
                else []
            ),
        )
    return readme


def _between(text: str, mark: str, lines: list[str]) -> str:
    before, marked, rest = text.partition(mark + "\n")
    end = "<!-- end -->"
    return (
        before + marked + "\n".join([*lines, end]) + rest.partition(end)[2]
        if marked and end in rest
        else text
    )
