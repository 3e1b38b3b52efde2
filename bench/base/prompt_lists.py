"""Reading prompt lists as their authors publish them:

CSV with any delimiter, JSON lines, or one prompt a line.

Prompts are keys: they are kept to the letter, quoted newlines, doubled quotes and spaces at the end
included.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from bench.base.errors import UserError, one_line, visible

Format = Literal["csv", "jsonl", "lines"]
Row = dict[str, str]


def read_rows(
    file: Path, format: Format = "csv", delimiter: str = ","
) -> tuple[set[str], list[Row]]:
    """The columns and the rows of a list.

    One of format `lines` has the columns `prompt` and `line`, which counts from 1.

    Raises `UserError` when the file is missing, no UTF-8, or malformed.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
        if format == "lines":
            lines = [line for line in text.split("\n") if line.strip()]
            return {"prompt", "line"}, [
                {"prompt": line.removesuffix("\r"), "line": str(number)}
                for number, line in enumerate(lines, 1)
            ]
        if format == "jsonl":
            rows = [
                _as_text(json.loads(line), number)
                for number, line in enumerate(text.split("\n"), 1)
                if line.strip()
            ]
            return set().union(*rows) if rows else set(), rows
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns, rows = (
            set(reader.fieldnames or ()),
            [{key: cell or "" for key, cell in row.items()} for row in reader],
        )
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"the prompt list {file} cannot be read: {one_line(error)}") from error
    for number, row in enumerate(rows, 1):
        if None in row:
            raise UserError(
                f"the prompt list {file}: record {number} has more cells than the heading"
            )
    return columns, rows


def _as_text(value: object, line: int) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"line {line} holds no object")
    return {
        str(key): one if isinstance(one, str) else json.dumps(one) for key, one in value.items()
    }


def filled_in(template: str, row: Mapping[str, str]) -> str:
    """A path with `{column}` replaced by the row's cells.

    Raises `UserError` for unknown columns and for cells that would lead elsewhere.
    """

    def cell(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in row:
            raise UserError(
                f"the reference '{template}' names the column '{name}', which the list has not (it"
                f" has: {', '.join(map(str, row))})"
            )
        if (
            "/" in row[name]
            or "\\" in row[name]
            or row[name] in ("", ".", "..")
            or not PurePosixPath(row[name]).name
        ):
            raise UserError(
                f"the cell '{visible(row[name])}' of the column '{name}' cannot be a part of the"
                f" path '{template}'"
            )
        return row[name]

    return re.sub(r"\{([^{}]*)\}", cell, template)
