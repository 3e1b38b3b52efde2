"""Figures that papers print, in a table of their own: never beside measured rows, because no two
papers measure alike.

The file is `leaderboards/published.csv`: one number a row, where it was read, and what differs from
the protocol here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Literal, cast

from bench.base.errors import UserError, one_line
from bench.leaderboard.cells import escape

Tag = Literal["paper", "code", "second_hand"]
# of a row, and as a reader sees it
TAGS = {"paper": "paper", "code": "code", "second_hand": "second-hand"}
OPTIONAL = ("spread", "n", "note")
# as printed; so neither NaN nor infinity can be written
NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?")
NAME = re.compile(r"[a-z][a-z0-9_]*")
ARXIV = re.compile(r"arXiv:([0-9]{4}\.[0-9]{4,5})")
# nothing that could end a Markdown link
URL = re.compile(r"https://[A-Za-z0-9.-]+(/[A-Za-z0-9._~%/#?=&+-]*)?")


@dataclass(frozen=True)
class Published:
    """One published number, with the decimals that were printed.

    The fields are the columns of the file, in their order.
    """

    work: str
    year: int
    method: str  # as the harness calls it where it has it
    model: str
    suite_or_protocol: str
    score: str
    value: Decimal
    spread: Decimal | None  # what follows ±; the note says of what kind it is
    unit: str
    n: str  # prompts x images where known
    where: str
    source: str  # arXiv:NUMBER or an https address
    tag: Tag  # read in the paper, in its code, or only in what others say of it
    note: str

    @property
    def address(self) -> str:
        arxiv = ARXIV.fullmatch(self.source)
        return f"https://arxiv.org/abs/{arxiv[1]}" if arxiv else self.source

    @property
    def shown(self) -> str:
        """`0.83 ± 0.16`, as printed."""
        return f"{self.value:f}" + (f" ± {self.spread:f}" if self.spread is not None else "")


LONGEST = 5000  # characters of a text; the file is our own
COLUMNS = tuple(field.name for field in fields(Published))


def load_published(path: Path) -> list[Published]:
    """The rows of a file in its order.

    Raises `UserError` with file and line for anything that is not exactly as it should be: columns,
    missing cells, numbers, names, sources, tags, and a figure that stands twice.
    """
    rows: list[Published] = []
    lines: dict[tuple[object, ...], int] = {}
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            _check_header(next(reader, []))
            line = reader.line_num + 1
            for cells in reader:
                row = _row([" ".join(cell.split()) for cell in cells])
                figure = (
                    row.work,
                    row.method,
                    row.model,
                    row.suite_or_protocol,
                    row.score,
                    row.n,
                    row.where,
                )
                if figure in lines:
                    raise ValueError(
                        f"the figure of line {lines[figure]} again: {row.score} of {row.method}"
                    )
                lines[figure] = line
                rows.append(row)
                line = reader.line_num + 1  # a quoted cell may hold line breaks
    except (ValueError, csv.Error, OSError) as error:
        raise UserError(
            f"published figures {path}, line {line}: {one_line(error)[:200]}"
        ) from error
    return rows


def _check_header(header: list[str]) -> None:
    if unknown := [name for name in header if name not in COLUMNS]:
        raise ValueError(f"unknown column '{unknown[0]}'; the columns are {', '.join(COLUMNS)}")
    if missing := [name for name in COLUMNS if name not in header]:
        raise ValueError(f"column '{missing[0]}' is missing; the columns are {', '.join(COLUMNS)}")
    if tuple(header) != COLUMNS:
        raise ValueError(f"the columns must be {', '.join(COLUMNS)}, in this order and each once")


def _row(cells: list[str]) -> Published:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells instead of {len(COLUMNS)}")
    row = dict(zip(COLUMNS, cells, strict=True))
    for name, cell in row.items():
        if not cell and name not in OPTIONAL:
            raise ValueError(f"{name} is missing")
        if not cell.isprintable():
            raise ValueError(f"{name} holds characters that cannot be printed: {cell!r}")
    if not re.fullmatch("(19|20)[0-9]{2}", row["year"]):
        raise ValueError(f"year must be one, not '{row['year']}'")
    if not NAME.fullmatch(row["score"]):
        raise ValueError(
            f"score must be a name of small letters, digits and _, not '{row['score']}'"
        )
    if not ARXIV.fullmatch(row["source"]) and not URL.fullmatch(row["source"]):
        raise ValueError(f"source must be arXiv:NUMBER or an https address, not '{row['source']}'")
    if row["tag"] not in TAGS:
        raise ValueError(f"tag must be {', '.join(TAGS)}, not '{row['tag']}'")
    spread = _number("spread", row["spread"]) if row["spread"] else None
    if spread is not None and spread < 0:
        raise ValueError(f"spread must not be negative, not '{row['spread']}'")
    return Published(
        work=row["work"],
        year=int(row["year"]),
        method=row["method"],
        model=row["model"],
        suite_or_protocol=row["suite_or_protocol"],
        score=row["score"],
        value=_number("value", row["value"]),
        spread=spread,
        unit=row["unit"],
        n=row["n"],
        where=row["where"],
        source=row["source"],
        tag=cast(Tag, row["tag"]),
        note=row["note"],
    )


def _number(name: str, text: str) -> Decimal:
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{name} must be a finite decimal number, not '{text}'")
    return Decimal(text)


def markdown(rows: Iterable[Published], second_hand: bool = False) -> str:
    """A page of its own, which does not depend on the order of the rows: figures that were read in
    papers and their code; with `second_hand` also those that only others state.
    """
    known = sorted(rows, key=_order)
    shown = [row for row in known if second_hand or row.tag != "second_hand"]
    lines = [
        "# Published figures",
        "",
        (
            "**Not comparable with measured rows**, nor one work's with another's: models, prompts,"
            " images, descriptors and averages differ. They are here to be looked up; every line"
            " says where it was read. Only lines of one work and protocol stand for a comparison."
        ),
        "",
    ]
    if shown:
        headings = (
            "work",
            "method",
            "model",
            "protocol",
            "score",
            "value",
            "unit",
            "n",
            "where",
            "read in",
            "note",
        )
        lines += ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in shown]
    else:
        lines.append("No figures.")
    if second_hand and any(row.tag == "second_hand" for row in shown):
        lines += [
            "",
            (
                "‡ second-hand: found in reviews, notes or other papers and not checked against the"
                " work itself."
            ),
        ]
    if left_out := len(known) - len(shown):
        lines += ["", f"Left out: {left_out} figures known at second hand only."]
    return "\n".join(lines) + "\n"


def _order(row: Published) -> tuple[object, ...]:
    spread = Decimal(-1) if row.spread is None else row.spread
    place = (
        row.year,
        row.work,
        row.model,
        row.suite_or_protocol,
        row.score,
        row.method != "none",
        row.method,
        row.where,
        row.n,
    )
    return (
        *place,
        row.value,
        f"{row.value:f}",
        spread,
        f"{spread:f}",
        row.unit,
        row.source,
        row.tag,
        row.note,
    )


def _cells(row: Published) -> list[str]:
    mark = " ‡" if row.tag == "second_hand" else ""
    plain = (
        row.method,
        row.model,
        row.suite_or_protocol,
        row.score,
        row.shown + mark,
        row.unit,
        row.n,
        row.where,
        TAGS[row.tag],
        row.note,
    )
    return [
        f"[{escape(row.work, LONGEST)} {row.year}]({row.address})",
        *(escape(text, LONGEST) or "–" for text in plain),
    ]
