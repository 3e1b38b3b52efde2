"""The number of a prompt's tokens, as a floor for detectors."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench import Detector, Needs, Observation


class Tokens(Detector):
    """Number of tokens in the prompt, cut to what the text encoder takes: a floor, for it evaluates
    no model.

    Beginning and end are counted, padding is not. Invented words and names fall into many tokens,
    so this floor sees more than `length` does.
    """

    needs: ClassVar[Needs] = "text"

    def rows(self, steps: int) -> tuple[float, float]:
        return 0.0, 0.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, 1]`."""
        return seen.lengths.astype(np.float64)[:, None]
