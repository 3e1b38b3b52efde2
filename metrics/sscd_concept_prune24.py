"""Chavhan et al. (2024, concept pruning): checkpoint `sscd_disc_large`, the mean over training
pictures, the first image of a prompt only.

Their documentation says maximum and their code takes the mean; this is the code. Preprocessing as
in Wen et al. (2024): short side 256, centre 224, pixels normalised by 0.5. The original makes one
image a prompt, of seed 0; here it is the first of the suite's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bench import Evaluation, Metric, PerImage, Shown, Unmeasurable
from metrics._sscd_paper import Paper, PaperSscd

PAPER = Paper("Chavhan et al., 2024", "sscd_disc_large", "concept_prune", 1)


class SscdConceptPrune24(PaperSscd, Metric):
    """Similarity as the code of Chavhan et al. (2024) reports it: mean over training pictures, the
    first image, mean over prompts.
    """

    names: ClassVar[tuple[str, ...]] = ("sscd_concept_prune24_first",)
    pictured: ClassVar[tuple[str, ...]] = names
    one_a_prompt: ClassVar[tuple[str, ...]] = names
    shown: ClassVar[Mapping[str, Shown]] = {
        "sscd_concept_prune24_first": PAPER.shown(
            "SSCD (Chavhan)",
            "mean over training pictures, the first image of a prompt, mean over prompts",
        )
    }
    paper: ClassVar[Paper] = PAPER

    def measure(self, evaluation: Evaluation) -> Mapping[str, PerImage | Unmeasurable]:
        """The mean over prompts of their first image."""
        return {"sscd_concept_prune24_first": self.mean_score(self.compared(evaluation), "first")}
