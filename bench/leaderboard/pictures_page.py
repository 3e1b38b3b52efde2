"""The pictures of a board on a page of their own, `pictures/<suite>.html`: the same prompt and seed
under every method, and what attackers got.

The pictures stand in sheets beside it (`pictures/<suite>/`), which a browser loads as far as a
reader scrolls. The page of the board shows a few lines of the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from bench.leaderboard import charts
from bench.leaderboard.board import Board, Row
from bench.leaderboard.cells import group_order
from bench.leaderboard.sheets import Cut, Sheet
from bench.leaderboard.templating import package_file, plain, template
from bench.records.parts import REFERENCE
from bench.records.record import RecordedExhibit

FOLDER = "pictures"


@dataclass(frozen=True)
class Line:
    """A prompt and seed: its training picture, and the image of each row by place in the board."""

    prompt: str
    group: str
    seed: int
    training: Cut | None
    pictures: dict[int, Cut]

    @property
    def words(self) -> str:
        """What a search finds it by."""
        return plain(self.prompt, 300).lower()


@dataclass(frozen=True)
class Gallery:
    """The rows that have pictures, `none` first, and the lines, most duplicated prompts first."""

    rows: tuple[tuple[int, Row], ...]
    lines: tuple[Line, ...]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(line.group for line in self.lines))

    @property
    def training(self) -> bool:
        """Whether some line has a training picture."""
        return any(line.training for line in self.lines)

    def some(self, lines: int, places: Collection[int]) -> Gallery:
        """Its first lines, of these rows alone."""
        return replace(
            self,
            rows=tuple(found for found in self.rows if found[0] in places),
            lines=self.lines[:lines],
        )


@dataclass(frozen=True)
class Find:
    """What an attack found: its pictures as one line, and the training picture."""

    found: RecordedExhibit
    pictures: Cut | None
    training: Cut | None


@dataclass(frozen=True)
class Pictures:
    """What the page shows, and the sheets that it needs; `finds` by place in the board."""

    gallery: Gallery
    finds: tuple[tuple[int, Row, tuple[Find, ...]], ...]
    sheets: tuple[Sheet, ...]


def pictures_of(board: Board) -> Pictures:
    """Every picture of a board's rows; `none` first, with which the others are compared."""
    training = Sheet(f"{board.suite}/training.svg")
    sheets = [training]
    of_line: dict[tuple[str, int], dict[str, Any]] = {}
    rows: list[tuple[int, Row]] = []
    finds: list[tuple[int, Row, tuple[Find, ...]]] = []
    for place, row in _reference_first(board):
        record = row.record
        own = Sheet(f"{board.suite}/{record.run}.svg")
        # one column of none is enough
        again = record.method == REFERENCE and bool(rows)
        for thumbnail in () if again else record.thumbnails:
            line = of_line.setdefault(
                (thumbnail.prompt_id, thumbnail.seed),
                {
                    "prompt": thumbnail.prompt,
                    "group": thumbnail.group,
                    "seed": thumbnail.seed,
                    "training": None,
                    "pictures": {},
                },
            )
            line["training"] = line["training"] or training.add([thumbnail.reference])
            if cut := own.add([thumbnail.png]):
                line["pictures"][place] = cut
        if own.lines:
            rows.append((place, row))
        got = Sheet(f"{board.suite}/{record.run}-finds.svg")
        if record.exhibits:
            found = tuple(
                Find(exhibit, got.add(exhibit.pictures), training.add([exhibit.reference]))
                for exhibit in record.exhibits
            )
            finds.append((place, row, found))
        sheets += [own, got]
    keys = sorted(of_line, key=lambda key: (group_order(of_line[key]["group"]), key))
    keys.sort(key=lambda key: group_order(of_line[key]["group"])[1], reverse=True)
    lines = [Line(**of_line[key]) for key in keys]
    return Pictures(
        Gallery(tuple(rows), tuple(line for line in lines if line.pictures or line.training)),
        tuple(finds),
        tuple(sheet for sheet in sheets if sheet.lines),
    )


def _reference_first(board: Board) -> list[tuple[int, Row]]:
    """The rows with the reference, which the others are compared with, first."""
    return sorted(enumerate(board.rows), key=lambda found: found[1].record.method != REFERENCE)


def files(board: Board) -> dict[str, str]:
    """The page and its sheets by name; none where no row has a picture."""
    pictures = pictures_of(board)
    if not pictures.sheets and not pictures.finds:
        return {}
    made = {f"{FOLDER}/{sheet.file}": sheet.svg() for sheet in pictures.sheets}
    return {f"{FOLDER}/{board.suite}.html": html(board, pictures)} | made


def html(board: Board, pictures: Pictures) -> str:
    """The page. It asks nothing of the network."""
    script = package_file("leaderboard.js")
    content: str = template("pictures.html").render(
        board=board,
        pictures=pictures,
        gallery=pictures.gallery,
        group_name=board.rows[0].record.group_name if board.rows else "group",
        looks=charts.looks(board.rows),
        **page_parts(script),
    )
    return content


def page_parts(script: str) -> dict[str, Markup | str]:
    """Style and script of the pages of a board, and the script's digest for their policy."""
    # this package's own files: nothing of a record is in them
    return {
        "style": Markup(package_file("charts.css") + package_file("leaderboard.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def places_of(rows: Sequence[Row], board: Board) -> list[int]:
    """The places of these rows in the board, in their order and each once."""
    known = {(row.record.method, row.record.run): place for place, row in enumerate(board.rows)}
    return list(dict.fromkeys(known[row.record.method, row.record.run] for row in rows))
