"""A board as a LaTeX table to include in a paper: `\\input{testbed.tex}` with the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.board import Board, Column
from bench.cells import number

# One character at a time, so that nothing is escaped twice.
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "×": r"$\times$",
    "†": r"\dag{}", "‡": r"\ddag{}", "–": "--", "●": r"$\bullet$",
}  # fmt: skip


def escape(text: str) -> str:
    """Text that LaTeX prints as it is: one line, no command, no character that pdfLaTeX does not know."""
    plain = " ".join(text.split())
    return "".join(SPECIAL.get(letter, letter if letter.isascii() and letter.isprintable() else "?") for letter in plain)


def latex(board: Board, columns: Sequence[Column], headings: Sequence[str]) -> str:
    """A tabular with one row a run: values with the interval in small type beneath where there is one."""
    lines = [
        "% made by `bench leaderboard` from the records; needs \\usepackage{booktabs}",
        r"\begin{tabular}{ll" + "r" * len(columns) + "c}",
        r"\toprule",
        " & ".join(["method", "acts on", *(escape(heading) for heading in headings), "Pareto"]) + r" \\",
        r"\midrule",
    ]
    for row in board.rows:
        values, intervals = [], []
        for column in columns:
            score = row.score(column)
            known = score is not None and score.value is not None
            values.append(number(score.value, column.decimals).replace("–", "--") if score is not None else "--")
            low, high = (score.low, score.high) if known and score is not None else (None, None)
            interval = f"[{number(low, column.decimals)}, {number(high, column.decimals)}]" if low is not None and high is not None else ""
            intervals.append(rf"{{\scriptsize {interval}}}" if interval else "")
        lines.append(" & ".join([escape(row.label), escape(row.record.where), *values, r"$\bullet$" if row.pareto else ""]) + r" \\")
        if any(intervals):
            lines.append(" & ".join(["", "", *intervals, ""]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
