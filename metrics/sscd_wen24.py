"""Wen et al. (ICLR 2024): checkpoint `sscd_disc_large`, the most similar training picture, mean
over seeds, mean over prompts.

Pictures have a short side of 256 and lose all but the central 224 pixels; pixels are normalised by
0.5, which is not what the descriptor was trained with, so thresholds of other profiles do not carry
over. The original takes 4 images a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bench import Evaluation, Metric, PerImage, Shown, Unmeasurable
from metrics._sscd_paper import Paper, PaperSscd, by_image, by_prompt

PAPER = Paper("Wen et al., ICLR 2024", "sscd_disc_large", "wen", 4)


class SscdWen24(PaperSscd, Metric):
    """Similarity as Wen et al. (2024) report it: max over training pictures, mean over seeds, mean
    over prompts.
    """

    names: ClassVar[tuple[str, ...]] = ("sscd_wen24_mean",)
    pictured: ClassVar[tuple[str, ...]] = names
    shown: ClassVar[Mapping[str, Shown]] = {
        "sscd_wen24_mean": PAPER.shown(
            "SSCD (Wen)",
            "max over training pictures, mean over seeds (4 in the paper), mean over prompts",
        )
    }
    paper: ClassVar[Paper] = PAPER

    def measure(self, evaluation: Evaluation) -> Mapping[str, PerImage | Unmeasurable]:
        """The mean; the most and the least similar seed of each prompt, averaged over prompts,
        stand in the details, as the original logs them.
        """
        found = self.compared(evaluation)
        table = by_image(found.tables, "max")
        most, least = (float(by_prompt(table, which).mean()) for which in ("max", "min"))
        return {
            "sscd_wen24_mean": self.mean_score(
                found, "mean", max_over_seeds=most, min_over_seeds=least
            )
        }
