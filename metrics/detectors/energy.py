"""The energy by which MemBench searches for memorized prompts (Hong et al., TMLR 2025, arXiv
2407.17095).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from bench import Detector, Needs, Observation, Recorder
from metrics.detectors._recorders import DifferenceNorms


class Energy(Detector):
    """Squared norm of conditional minus unconditional noise at the first step (MemBench).

    For one image it ranks prompts as `wen` does with one step; a mean of squares over several
    images ranks them otherwise. The paper evaluates at timestep 999; here it is the first timestep
    of the suite's sampler, which costs nothing more.
    """

    needs: ClassVar[Needs] = "trajectory"
    paper: ClassVar[str] = "Hong et al. 2025, arXiv:2407.17095"

    def recorders(self) -> Sequence[Recorder]:
        return (DifferenceNorms(),)

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches of one step; nothing where it is sampled."""
        return 2.0, 0.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`, at least 0."""
        return np.square(seen.trace(DifferenceNorms())[..., 0], dtype=np.float64)
