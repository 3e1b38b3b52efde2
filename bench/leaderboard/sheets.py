"""The pictures of records in files of their own, which a page loads when a reader comes to them.

A sheet is an SVG file that holds many pictures as they stand in the records, in lines of one or
several; a page shows one line of it. So a board has two files a row instead of hundreds of small
ones, nothing is encoded again, and the same records give the same bytes everywhere.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from markupsafe import Markup

BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
SMALL = 64  # pixels: pictures up to this side are enlarged without smoothing
SIDE = 80  # of a picture on a page
GAP = 4  # between the pictures of one line


@lru_cache(maxsize=65536)
def is_picture(png: str | None) -> bool:
    """Whether a text is base64, as pictures of records are. What is not is never shown."""
    return bool(png) and len(png or "") % 4 == 0 and BASE64.fullmatch(png or "") is not None


@lru_cache(maxsize=65536)
def is_small(png: str) -> bool:
    """Whether a PNG is no larger than `SMALL` on either side; True where that cannot be read."""
    head = base64.b64decode(png[:64])
    if not head.startswith(b"\x89PNG"):
        return True
    return max(int.from_bytes(head[place : place + 4], "big") for place in (16, 20)) <= SMALL


@dataclass(frozen=True)
class Cut:
    """One line of a sheet: the sheet's file, relative to the folder `pictures`, how far down the
    line stands, and its number of pictures.
    """

    file: str
    top: int
    count: int = 1

    @property
    def attributes(self) -> Markup:
        """Those of an HTML image that shows the line, for a page in the folder `pictures`."""
        return self.seen_from("")

    def seen_from(self, before: str) -> Markup:
        """The same for a page elsewhere; `before` is the way from there to the folder."""
        # Both are made of names that records may not choose freely (`NAME`, hexadecimal digits).
        return Markup(
            'src="{}{}" width="{}" height="{}" loading="lazy" decoding="async" class="cut"'
            ' style="object-position:0 -{}px"'
        ).format(before, self.file, self.count * (SIDE + GAP) - GAP, SIDE, self.top)


@dataclass
class Sheet:
    """Pictures on their way into one file. A line that was added before is not added again."""

    file: str
    lines: dict[tuple[str, ...], Cut] = field(default_factory=dict)

    def add(self, pictures: Sequence[str | None]) -> Cut | None:
        """The place of these pictures as one line; None where none of them is a picture."""
        line = tuple(png for png in pictures if png and is_picture(png))
        if not line:
            return None
        if line not in self.lines:
            self.lines[line] = Cut(self.file, len(self.lines) * SIDE, len(line))
        return self.lines[line]

    def svg(self) -> str:
        """The file. Pictures keep their proportions."""
        wide = max((cut.count for cut in self.lines.values()), default=1) * (SIDE + GAP) - GAP
        high = max(len(self.lines), 1) * SIDE
        drawn = [
            # only letters, digits, +, / and =: nothing in it could end the attribute
            f'<image x="{place * (SIDE + GAP)}" y="{cut.top}" width="{SIDE}" height="{SIDE}"'
            f"{' class=' + chr(34) + 'dots' + chr(34) if is_small(png) else ''}"
            f' href="data:image/png;base64,{png}"/>'
            for line, cut in self.lines.items()
            for place, png in enumerate(line)
        ]
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}">',
                "<style>.dots { image-rendering: pixelated }</style>",
                *drawn,
                "</svg>",
                "",
            ]
        )
