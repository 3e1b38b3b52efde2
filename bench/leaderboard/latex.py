"""A board as a LaTeX table to include in a paper: `\\input{testbed.tex}` with the package
booktabs.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.leaderboard.board import Board
from bench.leaderboard.cells import cell, difference_cell, number
from bench.leaderboard.columns import Column

# One character at a time, so that nothing is escaped twice.
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "×": r"$\times$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "–": "--",
    "●": r"$\bullet$",
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it is: one line, no command, no character that pdfLaTeX does not
    know.
    """
    plain = " ".join(text.split())
    return "".join(
        SPECIAL.get(letter, letter if letter.isascii() and letter.isprintable() else "?")
        for letter in plain
    )


def latex(board: Board, columns: Sequence[Column], headings: Sequence[str]) -> str:
    """A tabular with one row a run: values, and in small type beneath them the interval and the
    difference to `none` where there are any.
    """
    lines = [
        "% made by `bench leaderboard` from the records; needs \\usepackage{booktabs}",
        r"\begin{tabular}{ll" + "r" * len(columns) + "c}",
        r"\toprule",
        " & ".join(["method", "acts on", *(escape(heading) for heading in headings), "Pareto"])
        + r" \\",
        r"\midrule",
    ]
    for row in board.rows:
        values, intervals, changes = [], [], []
        for column in columns:
            score, change = (
                row.score(column),
                difference_cell(row.difference(column), column.decimals),
            )
            values.append(
                number(score.value if score else None, column.decimals).replace("–", "--")
            )
            interval = cell(score, column.decimals).partition(" ")[2]
            intervals.append(rf"{{\scriptsize {interval}}}" if interval else "")
            changes.append(rf"{{\scriptsize $\Delta$ {change}}}" if change else "")
        lines.append(
            " & ".join(
                [
                    escape(row.label),
                    escape(row.record.where),
                    *values,
                    r"$\bullet$" if row.pareto else "",
                ]
            )
            + r" \\"
        )
        lines += [
            " & ".join(["", "", *below, ""]) + r" \\"
            for below in (intervals, changes)
            if any(below)
        ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
