"""Change of the conditional prediction between two of the first steps (the anonymous repository
randomnameforicml/icml-2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bench import Detector, Needs, Observation, Recorder
from metrics.detectors._conditional_shifts import ConditionalShifts, shift_number


class Dsm(Detector):
    """Squared change of the conditional prediction between two of the first steps
    (randomnameforicml 2026).

    `|e_c(x_(i+1)) - e_c(x_i)|^2` along the guided path, each prediction at its own timestep.
    Published with guidance 7.5 and 50 steps, summed in half precision for one noise a prompt; here
    guidance and steps are the suite's, sums are of float64, and of every image.
    """

    needs: ClassVar[Needs] = "trajectory"
    paper: ClassVar[str] = "randomnameforicml/icml-2026"

    pair: Literal["01", "12"] = Field(
        "12",
        description="the first step and the second (dsm01), or the second and the third (dsm12)",
    )

    def recorders(self) -> Sequence[Recorder]:
        return (ConditionalShifts(),)

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches of every step before the last that is read, and there the conditional one
        alone.
        """
        return (3.0 if self.pair == "01" else 5.0), 0.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`, at least 0."""
        return shift_number(seen, int(self.pair[0]))
