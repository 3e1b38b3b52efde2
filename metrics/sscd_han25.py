"""Han et al. (NeurIPS 2025): checkpoint `sscd_disc_mixup`, the most similar training picture, mean
over seeds, mean over prompts.

Checkpoint and preprocessing (320x320, ImageNet mean and deviation) are those of NeMo (2024), the
reducers are not. The original takes 10 images a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bench import Evaluation, Metric, PerImage, Shown, Unmeasurable
from metrics._sscd_paper import Paper, PaperSscd

PAPER = Paper("Han et al., NeurIPS 2025", "sscd_disc_mixup", "han", 10)


class SscdHan25(PaperSscd, Metric):
    """Similarity as Han et al. (2025) report it: max over training pictures, mean over seeds, mean
    over prompts.
    """

    names: ClassVar[tuple[str, ...]] = ("sscd_han25_mean",)
    pictured: ClassVar[tuple[str, ...]] = names
    shown: ClassVar[Mapping[str, Shown]] = {
        "sscd_han25_mean": PAPER.shown(
            "SSCD (Han)",
            "max over training pictures, mean over seeds (10 in the paper), mean over prompts",
        )
    }
    paper: ClassVar[Paper] = PAPER

    def measure(self, evaluation: Evaluation) -> Mapping[str, PerImage | Unmeasurable]:
        """One mean over all images."""
        return {"sscd_han25_mean": self.mean_score(self.compared(evaluation), "mean")}
