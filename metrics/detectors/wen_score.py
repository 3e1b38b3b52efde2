"""Magnitude of what the prompt adds (Wen et al., ICLR 2024, arXiv 2407.21720)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from bench import Detector, Needs, Observation, Recorder
from metrics.detectors._recorders import DifferenceNorms


class WenScore(Detector):
    """Norm of conditional minus unconditional noise, averaged over the first steps (Wen et al.).

    The norm is over all numbers of one image's latents, neither squared nor divided by their
    number. The paper uses 1, 10 and 50 steps of 50 and averages over four images of a prompt. The
    code takes differences in half precision; here they are taken in float32.
    """

    needs: ClassVar[Needs] = "trajectory"
    paper: ClassVar[str] = "Wen et al. 2024, arXiv:2407.21720"

    steps: int = Field(
        1, ge=0, description="first steps to average over; 0, or more than there are, for all"
    )

    def recorders(self) -> Sequence[Recorder]:
        return (DifferenceNorms(),)

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches of the steps that are averaged over; nothing where they are sampled."""
        return 2.0 * min(self.steps or steps, steps), 0.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`, at least 0."""
        norms = seen.trace(DifferenceNorms())
        return norms[..., : self.steps or None].mean(2, dtype=np.float64)

    def over_steps(self, seen: Observation) -> np.ndarray:
        """The norms, averaged over images, `[P, S]`."""
        return seen.trace(DifferenceNorms()).mean(1)
