"""The one reader of prompt lists and captions: CSV with any delimiter, JSON lines, or one prompt a
line, as their authors publish them.

Prompts are keys: they are kept to the letter, quoted newlines, doubled quotes and spaces at the end
included. Whatever would have to be guessed is refused, in one line that names the line of the file
and the column: a row with more or fewer cells than the heading has, a quote that is never closed,
bytes that are no UTF-8. A column that is used must stand once in the heading and hold a text in
every row; columns that nobody asks for may hold anything.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from bench.base import limits
from bench.base.errors import UserError, is_whole, one_line, visible
from bench.base.files import read_regular_file

Format = Literal["csv", "jsonl", "lines"]
FORMAT_NAMES = {"csv": "CSV", "jsonl": "JSON lines", "lines": "lines"}
DELIMITERS = ",;\t"  # those that are tried where nobody says which
NO_DELIMITERS = '"\r\n\0'  # a list cannot be cut at these
KINDS = {type(None): "null", bool: "a truth value", float: "a number", list: "a list"}


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row: the line of the file where it begins, and a sentence."""

    line: int
    what: str
    surplus: bool = False  # it has more cells than the heading


class Row(Mapping[str, str]):
    """One row of a list. Its keys are the columns that any row has.

    Asking for a cell that is missing here, or that is no text, raises a `UserError` that names line
    and column. Whole numbers count as their digits, since ids and seeds are numbers in JSON; `text`
    refuses them too.
    """

    __slots__ = ("_cells", "_list", "line")

    def __init__(self, list: PromptList, line: int, cells: Mapping[str, object]) -> None:
        self.line, self._list, self._cells = line, list, cells

    def __iter__(self) -> Iterator[str]:
        return iter(self._list.columns)

    def __len__(self) -> int:
        return len(self._list.columns)

    def __contains__(self, column: object) -> bool:
        return column in self._list.columns

    def __getitem__(self, column: str) -> str:
        value = self._value(column)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self._text(column, value)

    def text(self, column: str) -> str:
        """The cell of a column, which must be a text. Raises `UserError`, and `KeyError` where no
        row has the column.
        """
        return self._text(column, self._value(column))

    def refuse(self, column: str, what: str) -> UserError:
        """An error about one cell, which names the file, the line and the column."""
        return self._list.error(self.line, f"the column '{visible(column)}' {what}")

    def _value(self, column: str) -> object:
        if column not in self._list.columns:
            raise KeyError(column)
        if column in self._list.twice:
            raise self._list.error(1, f"the column '{visible(column)}' stands more than once")
        if column not in self._cells:
            raise self.refuse(column, "is missing")
        return self._cells[column]

    def _text(self, column: str, value: object) -> str:
        if not isinstance(value, str):
            kind = KINDS.get(type(value), "a number" if isinstance(value, int) else "an object")
            raise self.refuse(column, f"holds {kind} and no text")
        if "\0" in value:
            raise self.refuse(column, "holds a NUL character")
        if not is_whole(value):
            raise self.refuse(column, "holds half a character (a lone surrogate)")
        return value


class PromptList:
    """The rows of a list in their order, its columns, and what is wrong with single rows.

    One of the format `lines` has the columns `prompt` and `line`, which counts from 1 and leaves
    empty lines out.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.columns: tuple[str, ...] = ()
        self.twice: frozenset[str] = frozenset()
        self.rows: list[Row] = []
        self.faults: list[Fault] = []

    def error(self, line: int, what: str) -> UserError:
        return UserError(f"the prompt list {self.file}, line {line}: {what}")


def read_list(file: Path, format: Format = "csv", delimiter: str = ",") -> PromptList:
    """A list whose rows are all whole.

    Raises `UserError` when the file is missing, no UTF-8 or malformed, and for its first row with
    more or fewer cells than the heading has.
    """
    found = scan_list(file, format, delimiter)
    if found.faults:
        raise found.error(found.faults[0].line, found.faults[0].what)
    return found


def scan_list(file: Path, format: Format = "csv", delimiter: str | None = ",") -> PromptList:
    """A list with its faulty rows, for whoever tells all faults together. Where the `delimiter` is
    None it is the first of `DELIMITERS` that gives a column `prompt`.

    Raises `UserError` when the file cannot be read at all.
    """
    found = PromptList(file)
    text = _text_of(file, FORMAT_NAMES[format])
    readers: dict[Format, Callable[[], None]] = {
        "csv": lambda: _read_csv(
            found, text, _delimiter_of(text) if delimiter is None else delimiter
        ),
        "jsonl": lambda: _read_json_lines(found, text),
        "lines": lambda: _read_lines(found, text),
    }
    readers[format]()
    return found


def _text_of(file: Path, form: str) -> str:
    start = f"the prompt list {file} cannot be read as {form}"
    try:
        content = read_regular_file(file, limits.LIST_BYTES)
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError("it is UTF-16: save it as UTF-8")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, line = error.object[error.start], error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{start}: it is not UTF-8 (byte 0x{byte:02x} in line {line}): save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{start}: {one_line(error)}") from error
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise UserError(f"{start}: line {line} holds a NUL character")
    return text


def _read_lines(found: PromptList, text: str) -> None:
    found.columns = ("prompt", "line")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            cells = {"prompt": line.removesuffix("\r"), "line": str(len(found.rows) + 1)}
            found.rows.append(Row(found, number, cells))


def _read_json_lines(found: PromptList, text: str) -> None:
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            cells = _json_object(found, number, line)
            columns |= dict.fromkeys(cells)
            found.rows.append(Row(found, number, cells))
    found.columns = tuple(columns)


def _json_object(found: PromptList, number: int, line: str) -> dict[str, object]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        cells = dict(pairs)
        if len(cells) < len(pairs):
            raise ValueError("a key stands more than once in one object")
        return cells

    try:
        value = json.loads(line, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise found.error(
            number, f"no valid JSON: {error.msg} (character {error.colno})"
        ) from error
    except RecursionError as error:
        raise found.error(number, "no valid JSON: it is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits, too
        raise found.error(number, f"no valid JSON: {one_line(error)[:120]}") from error
    if not isinstance(value, dict):
        raise found.error(number, "it holds no object")
    return value


def _read_csv(found: PromptList, text: str, delimiter: str) -> None:
    if len(delimiter) != 1 or delimiter in NO_DELIMITERS:
        raise UserError(
            f"the prompt list {found.file} cannot be cut at {delimiter!r}: the delimiter must be"
            " one character and no quote, line end or NUL"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    heading: list[str] | None = None
    try:
        for cells in reader:
            if cells and heading is None:
                heading = cells
                found.columns = tuple(dict.fromkeys(cells))
                counts = Counter(cells)
                found.twice = frozenset(name for name in cells if counts[name] > 1)
            elif cells and heading:
                _add_row(found, begins, heading, cells)
            begins = reader.line_num + 1
    except csv.Error as error:
        what = (
            "a quote is never closed"
            if "unexpected end of data" in str(error)
            else one_line(error)[:120]
        )
        raise UserError(
            f"the prompt list {found.file} cannot be read as CSV: the row that begins in line"
            f" {begins}: {what}"
        ) from error


def _add_row(found: PromptList, line: int, heading: list[str], cells: list[str]) -> None:
    if len(cells) != len(heading):
        more = len(cells) > len(heading)
        hint = " (a comma without quotes?)" if more else ""
        what = f"{len(cells)} cells, and the heading has {len(heading)} columns{hint}"
        found.faults.append(Fault(line, what, surplus=more))
    found.rows.append(Row(found, line, dict(zip(heading, cells, strict=False))))


def _delimiter_of(text: str) -> str:
    for delimiter in DELIMITERS:
        heading = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            if "prompt" in next(heading, []):
                return delimiter
        except csv.Error:
            continue
    return DELIMITERS[0]


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
        content = row[name]
        if "/" in content or "\\" in content or not PurePosixPath(content).name or content == "..":
            raise UserError(
                f"the cell '{visible(content)}' of the column '{name}' cannot be a part of the path"
                f" '{template}'"
            )
        return content

    return re.sub(r"\{([^{}]*)\}", cell, template)
