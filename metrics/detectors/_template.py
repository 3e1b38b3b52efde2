"""What the detector reads, why that should betray a copy, and its source.

Copy this file to `mine.py` and try it: `bench check ./mine.py`, then `bench detect --detector
./mine.py`; or install it as a plug-in under the entry point `bench.detectors`.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from bench import Detector, Moment, Observation, Recorder


class GuidedNorms(Recorder):
    """Norm of the guided noise at every step: kept for every image while it is sampled."""

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        memory.setdefault("norms", []).append(moment.guided.float().flatten(1).norm(dim=1))

    def result(self, memory: dict[str, Any]) -> torch.Tensor:
        return torch.stack(memory["norms"], 1)


class Template(Detector):
    """Norm of the guided noise at one step: one line that `bench list` shows."""

    needs: ClassVar = "trajectory"  # or text, api, picture, model
    version: ClassVar = 1  # raise it when scores change

    step: int = Field(0, ge=0, description="which step of sampling is read")

    def recorders(self) -> tuple[Recorder, ...]:
        return (GuidedNorms(),)

    def rows(self, steps: int) -> tuple[float, float]:
        return 2.0 * (self.step + 1), 0.0  # evaluations an image: alone, and on top of sampling

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`; higher must mean memorized."""
        norms = seen.trace(GuidedNorms())
        return norms[..., min(self.step, norms.shape[2] - 1)]
