"""Magnitude of what the prompt adds, where the end token looks (Chen et al., ICLR 2025, arXiv
2410.21665).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from bench import Detector, Needs, Observation, Recorder
from metrics.detectors._recorders import BrightEnding as MaskedNorms


class BrightEnding(Detector):
    """Norm of conditional minus unconditional noise, weighted by the end token's attention at the
    last step and averaged over all steps (Chen et al.).

    `|d m| / mean(m)`, where m is the map of the end token in the first two cross-attention layers;
    a constant map gives the score of `wen_score` over all steps. In Stable Diffusion both layers
    have the latents' size; elsewhere a smaller map is enlarged bilinearly. The published code
    samples every image twice, once for the map and once for the norms; here the differences are
    kept until the map is there, which is the same without the second run.
    """

    needs: ClassVar[Needs] = "trajectory"
    paper: ClassVar[str] = "Chen et al. 2025, arXiv:2410.21665"
    in_chunks: ClassVar[bool] = False

    def recorders(self) -> Sequence[Recorder]:
        return (MaskedNorms(),)

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`, at least 0."""
        return seen.trace(MaskedNorms()).mean(2, dtype=np.float64)
