"""A board as a LaTeX table to include in a paper: `\\input{testbed.tex}` with the package
booktabs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

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
# Commands that LaTeX has without any package and in its oldest encoding: accents, letters, Greek,
# signs. pylatexenc also knows others, for Cyrillic say, at which a table would not compile.
ACCENTS = "'`^\"~=.cHruv"
LETTERS = "i ss ae AE oe OE o O l L"
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi"
    " pi rho sigma varsigma tau upsilon phi varphi chi psi omega"
    " Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
SIGNS = (
    "ensuremath pm leq geq neq approx equiv infty partial nabla sum prod in cdot leftrightarrow"
    " textellipsis textemdash textquotedblleft textquotedblright textquoteleft textquoteright"
    " textdegree textmu textonesuperior texttwosuperior textthreesuperior textleftarrow"
    " textrightarrow textcopyright textregistered textsection textparagraph textbullet"
)
COMMANDS = frozenset([*ACCENTS, *f"{LETTERS} {GREEK} {SIGNS}".split()])


def escape(text: str) -> str:
    """Text that LaTeX prints as it is: one line, no command of the text's own, and a question mark
    for what pdfLaTeX cannot print without further packages.
    """
    plain = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(map(_escaped, plain))


@cache
def _escaped(letter: str) -> str:
    if letter in SPECIAL:
        return SPECIAL[letter]
    if letter.isascii():
        return letter if letter.isprintable() else "?"
    from pylatexenc.latexencode import unicode_to_latex  # few tables need it

    latex: str = unicode_to_latex(
        letter, replacement_latex_protection="braces-all", unknown_char_warning=False
    )
    commands = re.findall(r"\\([A-Za-z]+|.)", latex)
    return latex if latex.isascii() and COMMANDS.issuperset(commands) else "?"


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
