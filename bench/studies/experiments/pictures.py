"""The pictures of an experiment: read once, without duplicates, with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.base.digests import digest_of
from bench.base.errors import UserError
from bench.base.pictures import pixel_digest
from bench.studies.finetune.data import Pair, fitted_picture, read_pairs


@dataclass(frozen=True)
class Pictures:
    """Captioned pictures, uint8 `[n, side, side, 3]`, no two the same; `classes` numbers those that
    share a caption from 0 on, and `removed` counts the duplicates left out.
    """

    pairs: tuple[Pair, ...]
    pixels: np.ndarray
    classes: tuple[int, ...]
    removed: int

    @property
    def digests(self) -> list[str]:
        """What each picture's pixels are, whatever its file is called."""
        return [pixel_digest(picture) for picture in self.pixels]

    @property
    def sha256(self) -> str:
        """Of captions and pixels."""
        return digest_of(
            [[pair.caption, d] for pair, d in zip(self.pairs, self.digests, strict=True)]
        )

    def chosen(self, numbers: Sequence[int]) -> Pictures:
        """Some of them, in this order."""
        return Pictures(
            tuple(self.pairs[number] for number in numbers),
            self.pixels[list(numbers)],
            tuple(self.classes[number] for number in numbers),
            self.removed,
        )


def read_pictures(folder: Path, side: int) -> Pictures:
    """The pictures of a folder (as `bench finetune` reads them), cut to `side` pixels a side, of
    duplicates the first; in an order in which any first N of them hold the first pictures of every
    class in turn.

    Raises `UserError` for a folder without captioned pictures, and for the first that is none.
    """
    seen: set[str] = set()
    pairs, pixels, removed = list[Pair](), list[np.ndarray](), 0
    for pair in read_pairs(folder):
        picture = fitted_picture(pair.path, side)
        digest = pixel_digest(picture)
        if digest in seen:
            removed += 1
            continue
        seen.add(digest)
        pairs.append(pair)
        pixels.append(picture)
    captions = list(dict.fromkeys(pair.caption for pair in pairs))
    classes = [captions.index(pair.caption) for pair in pairs]
    found = Pictures(tuple(pairs), np.stack(pixels), tuple(classes), removed)
    return found.chosen(nested(classes))


def nested(classes: Sequence[int]) -> list[int]:
    """The numbers of pictures, the first of every class before the second of any."""
    counts: dict[int, int] = {}
    places = []
    for number, kind in enumerate(classes):
        places.append((counts.get(kind, 0), kind, number))
        counts[kind] = counts.get(kind, 0) + 1
    return [number for _, _, number in sorted(places)]


def refuse_few(pictures: Pictures, wanted: int, what: str) -> None:
    """Raise `UserError` where there are fewer pictures than wanted."""
    if len(pictures.pairs) < wanted:
        left_out = f" ({pictures.removed} duplicates were left out)" if pictures.removed else ""
        raise UserError(
            f"{what} needs {wanted} pictures, and {len(pictures.pairs)} are there{left_out}"
        )
