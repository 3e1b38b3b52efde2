"""NeMo (Hintersdorf et al., NeurIPS 2024): checkpoint `sscd_disc_mixup` at 320x320, medians all the
way, and the deviation beside them.

Lower median over training pictures, over seeds and over prompts (as `torch.median` of an even
number), with the median absolute deviation over prompts (no factor 1.4826). D_SSCD is the lower
median over all pairs of a prompt's images, then over prompts: 1 where all are the same, so lower is
more diverse. The original takes 10 images a prompt and reports verbatim (VM) and template (TM)
prompts apart: so do the groups of a suite that names them. It measures SSCD_Gen too, the similarity
to the image of the same seed without mitigation: that one is not here, because a metric is given
the images of one run and would have to make the others again. NeMo scores JPEG files; images here
are scored as they were generated, without loss, so scores differ a little from the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import bench.statistics as stats
from bench import Evaluation, Metric, PerImage, Shown, Unmeasurable
from metrics._sscd_paper import Paper, PaperSscd, by_image, by_prompt, pair_medians

PAPER = Paper("NeMo (Hintersdorf et al.), NeurIPS 2024", "sscd_disc_mixup", "nemo", 10)
MAD = "median absolute deviation over prompts of the same, without a factor"


class SscdNemo24(PaperSscd, Metric):
    """Similarity as NeMo (2024) reports it, SSCD_Orig and D_SSCD: medians over training pictures,
    seeds and prompts, each with its deviation (MAD).
    """

    names: ClassVar[tuple[str, ...]] = (
        "sscd_nemo24_orig",
        "sscd_nemo24_orig_mad",
        "sscd_nemo24_d",
        "sscd_nemo24_d_mad",
    )
    pictured: ClassVar[tuple[str, ...]] = ("sscd_nemo24_orig", "sscd_nemo24_orig_mad")
    one_a_prompt: ClassVar[tuple[str, ...]] = names
    over_prompts: ClassVar[Mapping[str, str]] = {
        "sscd_nemo24_orig": "lower_median",
        "sscd_nemo24_orig_mad": "lower_mad",
        "sscd_nemo24_d": "lower_median",
        "sscd_nemo24_d_mad": "lower_mad",
    }
    shown: ClassVar[Mapping[str, Shown]] = {
        "sscd_nemo24_orig": PAPER.shown(
            "SSCD_Orig (NeMo)",
            "lower median over training pictures, lower median over seeds (10 in the paper), lower"
            " median over prompts",
        ),
        "sscd_nemo24_orig_mad": PAPER.shown("SSCD_Orig MAD", f"SSCD_Orig: {MAD}"),
        "sscd_nemo24_d": PAPER.shown(
            "D_SSCD (NeMo)",
            "lower median over all pairs of a prompt's images (45 in the paper), lower median over"
            " prompts",
        ),
        "sscd_nemo24_d_mad": PAPER.shown("D_SSCD MAD", f"D_SSCD: {MAD}"),
    }
    paper: ClassVar[Paper] = PAPER

    def measure(self, evaluation: Evaluation) -> Mapping[str, PerImage | Unmeasurable]:
        """Medians over prompts; the details have the median over prompts of their most similar
        image too. D_SSCD needs 2 images a prompt.
        """
        found = self.compared(evaluation)
        table = by_image(found.tables, "lower_median")
        details = found.details | self.details(
            table.shape[1], median_of_max=float(stats.lower_median(by_prompt(table, "max")))
        )
        orig = PerImage(
            by_prompt(table, "lower_median")[:, None],
            found.prompts,
            "cosine",
            False,
            statistic="lower_median",
            details=details,
        )
        scores: dict[str, PerImage | Unmeasurable] = {
            "sscd_nemo24_orig": orig,
            "sscd_nemo24_orig_mad": _deviation(orig),
        }
        details = {
            key: value
            for key, value in details.items()
            if key not in ("median_of_max", "references", "n_expected", "n_found")
        }
        try:
            diversity = PerImage(
                pair_medians(found.generated)[:, None],
                found.samples.prompts,
                "cosine",
                False,
                statistic="lower_median",
                details=details,
            )
        except Unmeasurable as why:
            return scores | {"sscd_nemo24_d": why, "sscd_nemo24_d_mad": why}
        return scores | {"sscd_nemo24_d": diversity, "sscd_nemo24_d_mad": _deviation(diversity)}


def _deviation(score: PerImage) -> PerImage:
    """How far prompts lie from their median: neither direction is better."""
    return replace(score, statistic="lower_mad", unit="cosine, deviation", higher_is_better=None)
