"""Whether two pictures of a prompt agree in every part (Carlini et al., USENIX Security 2023, arXiv
2301.13188).
"""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import numpy as np
from pydantic import Field

from bench import Detector, Needs, Observation, Unmeasurable


class TiledL2(Detector):
    """Minus the smallest tiled distance among a prompt's pictures (after Carlini et al.).

    The distance of two pictures is the largest of their tiles' normalized l2 distances, the root
    of the mean squared difference of pixels in [0, 1]; so a large flat background does not make two
    pictures alike. Tiles are compared at the same place. The paper cuts 512 pixels into 4 x 4
    tiles, makes 500 pictures a prompt and looks for cliques under a threshold it does not print;
    with few pictures the closest pair is what is left of that.
    """

    needs: ClassVar[Needs] = "api"
    paper: ClassVar[str] = "Carlini et al. 2023, arXiv:2301.13188"

    tiles: int = Field(4, ge=1, description="tiles on each side; a side need not be a multiple")

    def score(self, seen: Observation) -> np.ndarray:
        """In [-1, 0], `[P, 1]`.

        Raises `Unmeasurable` for one picture a prompt, and for pictures smaller than the tiles.
        """
        if seen.images < 2:
            raise Unmeasurable("tiled_l2 compares pictures of one prompt, and each has only one")
        scores = []
        for row in range(len(seen.prompts)):
            pairs = combinations(seen.pictures(row), 2)
            scores.append(-min(tiled_distance(one, other, self.tiles) for one, other in pairs))
            seen.report("tiled_l2", row + 1, len(seen.prompts))
        return np.array(scores)[:, None]


def tiled_distance(one: np.ndarray, other: np.ndarray, tiles: int) -> float:
    """The largest distance of two tiles at the same place, in [0, 1]; pictures `[H, W, 3]`, uint8.

    Sums of squares are integers, so equal pictures are at 0 and the order of sums does not matter.
    Where a side is no multiple of `tiles`, tiles differ by one pixel.
    """
    height, width, channels = one.shape
    if min(height, width) < tiles:
        raise Unmeasurable(f"pictures of {width}x{height} pixels have no {tiles}x{tiles} tiles")
    squares = np.square(one.astype(np.int64) - other).sum(2)
    rows = np.arange(tiles + 1) * height // tiles
    columns = np.arange(tiles + 1) * width // tiles
    sums = np.add.reduceat(np.add.reduceat(squares, rows[:-1], 0), columns[:-1], 1)
    pixels = np.outer(np.diff(rows), np.diff(columns)) * channels
    return float(np.sqrt((sums / pixels).max()) / 255)
