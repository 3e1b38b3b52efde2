"""Jeon et al. (ICML 2025): checkpoint `sscd_disc_large`, the most similar training picture, mean
over seeds, mean over prompts.

Preprocessing as in Wen et al. (2024): short side 256, centre 224, pixels normalised by 0.5. The
original takes 5 images a prompt and measures on the prompts whose training picture could still be
downloaded (454 of 500 for SD 1, 202 of 219 for SD 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bench import Evaluation, Metric, PerImage, Shown, Unmeasurable
from metrics._sscd_paper import Paper, PaperSscd

PAPER = Paper("Jeon et al., ICML 2025", "sscd_disc_large", "jeon", 5)


class SscdJeon25(PaperSscd, Metric):
    """Similarity as Jeon et al. (2025) report it: max over training pictures, mean over seeds, mean
    over prompts.
    """

    names: ClassVar[tuple[str, ...]] = ("sscd_jeon25_mean",)
    pictured: ClassVar[tuple[str, ...]] = names
    shown: ClassVar[Mapping[str, Shown]] = {
        "sscd_jeon25_mean": PAPER.shown(
            "SSCD (Jeon)",
            "max over training pictures, mean over seeds (5 in the paper), mean over prompts",
        )
    }
    paper: ClassVar[Paper] = PAPER

    def measure(self, evaluation: Evaluation) -> Mapping[str, PerImage | Unmeasurable]:
        """One mean over all images."""
        return {"sscd_jeon25_mean": self.mean_score(self.compared(evaluation), "mean")}
