"""How rare a prompt's words are in clean captions, as a floor for detectors."""

from __future__ import annotations

import re
from collections import Counter
from math import log
from typing import ClassVar

import numpy as np

from bench import Detector, Needs, Observation, Unmeasurable

_LETTERS = re.compile(r"[^\W\d_]+")


class Rarity(Detector):
    """Mean rarity of the prompt's words in clean captions: a floor, for it knows no model.

    A word's rarity is `-log((c + 1) / (N + V))` in nats, c its count among the N words of the
    suite's calibration captions, V of which differ; words are runs of letters in lower case. Where
    memorized captions hold invented words or names, this alone tells them from clean ones, and
    only memorized against never memorized captions of the same style show what a detector adds.
    """

    needs: ClassVar[Needs] = "text"

    def rows(self, steps: int) -> tuple[float, float]:
        return 0.0, 0.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, 1]`; 0 for a prompt without a letter, which has no rare word.

        Raises `Unmeasurable` where the suite has no calibration captions.
        """
        counts = Counter(word for caption in seen.calibration for word in _words(caption))
        if not counts:
            raise Unmeasurable("rarity counts words in the calibration captions; there are none")
        whole = counts.total() + len(counts)
        scores = []
        for prompt in seen.prompts:
            rarities = [-log((counts[word] + 1) / whole) for word in _words(prompt.text)]
            scores.append(sum(rarities) / max(len(rarities), 1))
        return np.array(scores)[:, None]


def _words(text: str) -> list[str]:
    return _LETTERS.findall(text.lower())
