"""The length of a prompt, as a floor for detectors."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench import Detector, Needs, Observation


class Length(Detector):
    """Number of words in the prompt, split at white space: a floor, for it knows no model.

    Lists of memorized and of clean prompts differ in more than memorization. A detector that does
    not beat this one may have learned where a list is from.
    """

    needs: ClassVar[Needs] = "text"

    def rows(self, steps: int) -> tuple[float, float]:
        return 0.0, 0.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, 1]`."""
        return np.array([[float(len(prompt.text.split()))] for prompt in seen.prompts])
