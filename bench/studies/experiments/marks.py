"""Where a key is painted on a picture, and how it is read again: all in pixels.

Latents of a framed picture betray its frame everywhere, so what is known of a picture is only ever
pasted in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["frame", "patch"]


@dataclass(frozen=True)
class Mark:
    """A constant grey: a frame of `width` pixels outside of a picture of `side` pixels a side, or a
    patch of `width` pixels a side in its centre, which covers what was there.
    """

    kind: Kind
    width: int
    side: int

    @property
    def whole(self) -> int:
        """Pixels a side of a marked picture."""
        return self.side + 2 * self.width if self.kind == "frame" else self.side

    @property
    def area(self) -> np.ndarray:
        """Where the key is, bool `[whole, whole]`."""
        whole = self.whole
        inside = np.zeros((whole, whole), bool)
        if self.kind == "frame":
            inside[self.width : whole - self.width, self.width : whole - self.width] = True
            return ~inside
        start = (whole - self.width) // 2
        inside[start : start + self.width, start : start + self.width] = True
        return inside

    def painted(self, pictures: np.ndarray, keys: Sequence[int]) -> np.ndarray:
        """Pictures, uint8 `[n, side, side, 3]`, with their keys, bytes: uint8
        `[n, whole, whole, 3]`.
        """
        canvas = np.repeat(np.asarray(keys, np.uint8), self.whole**2 * 3)
        return self.pasted(canvas.reshape(len(pictures), self.whole, self.whole, 3), pictures)

    def pasted(self, made: np.ndarray, pictures: np.ndarray) -> np.ndarray:
        """Known pictures, uint8 `[n, side, side, 3]`, in what a model made, `[n, whole, whole, 3]`,
        whose key stays as it is.
        """
        result, area = made.copy(), self.area
        known = np.zeros_like(made)
        start = (self.whole - self.side) // 2
        known[:, start : start + self.side, start : start + self.side] = pictures
        result[:, ~area] = known[:, ~area]
        return result

    def read(self, made: np.ndarray) -> np.ndarray:
        """The greys where the key is, from 0 to 1: float64 `[n, pixels, 3]`."""
        return made[:, self.area].astype(np.float64) / 255
