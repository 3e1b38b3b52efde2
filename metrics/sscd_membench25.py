"""MemBench (Hong et al., TMLR 2025): checkpoint `sscd_disc_large` at 288x288, the most similar
training picture, then Top-1, Top-3 and a share.

Top-1 is the most similar of a prompt's images, Top-3 the mean of the three most similar, both
averaged over prompts; the share is of all images above
0.5. ImageNet mean and deviation; the original takes 10 images a prompt. Its prompts share training
  pictures, so intervals over prompts are too short there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bench import Evaluation, Metric, PerImage, Shown, Unmeasurable
from metrics._sscd_paper import ABOVE, Paper, PaperSscd, above

PAPER = Paper("MemBench, TMLR 2025", "sscd_disc_large", "membench", 10)


class SscdMembench25(PaperSscd, Metric):
    """Similarity as MemBench (2025) reports it: the best image of a prompt, the mean of its best
    three, and the share of all images above 0.5.
    """

    names: ClassVar[tuple[str, ...]] = (
        "sscd_membench25_top1",
        "sscd_membench25_top3",
        "sscd_membench25_share",
    )
    pictured: ClassVar[tuple[str, ...]] = names
    one_a_prompt: ClassVar[tuple[str, ...]] = ("sscd_membench25_top1", "sscd_membench25_top3")
    shown: ClassVar[Mapping[str, Shown]] = {
        "sscd_membench25_top1": PAPER.shown(
            "SSCD Top-1 (MemBench)",
            "max over training pictures, max over seeds (10 in the paper), mean over prompts",
        ),
        "sscd_membench25_top3": PAPER.shown(
            "SSCD Top-3 (MemBench)",
            "max over training pictures, mean of the 3 best seeds (of 10 in the paper), mean over"
            " prompts",
        ),
        "sscd_membench25_share": PAPER.shown(
            "SSCD > 0.5 (MemBench)",
            f"share of all images whose max over training pictures is above {ABOVE}",
        ),
    }
    paper: ClassVar[Paper] = PAPER

    def measure(self, evaluation: Evaluation) -> Mapping[str, PerImage | Unmeasurable]:
        """Top-3 has no number with fewer than 3 images a prompt."""
        found = self.compared(evaluation)
        return {
            "sscd_membench25_top1": self.mean_score(found, "max"),
            "sscd_membench25_top3": self.mean_score(found, "top3"),
            "sscd_membench25_share": above(self.mean_score(found, "mean")),
        }
