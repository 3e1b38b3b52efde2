"""DCR (Somepalli et al., NeurIPS 2023): each generation against its nearest training picture of
all, as a distribution over generations.

Their backbones are `resnet50` (`sscd_disc_mixup`), `resnet50_im` (`sscd_imagenet_mixup`) and
`resnet50_disc` (`sscd_disc_large`); the suite's file decides. Short side 256, centre 224, pixels
normalised by 0.5. The original searches the whole training set. Here it is every training picture
that the suite names, of prompts to fit on too, so similarities are lower bounds of theirs. The
background (the second nearest of a training picture among these, the first being itself) stands in
the details.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

import bench.statistics as stats
from bench import Evaluation, Metric, PerImage, Shown, Unmeasurable, read_picture
from bench.features import CopyDescriptor
from metrics._sscd_paper import ABOVE, Paper, PaperSscd, above

PAPER = Paper(
    "DCR (Somepalli et al.), NeurIPS 2023",
    "sscd_disc_mixup, sscd_imagenet_mixup or sscd_disc_large",
    "dcr",
    None,
)
SEARCHED = (
    "the training pictures of the suite's prompts; the original searches the whole training set"
)
NEAREST = (
    "the nearest of all training pictures that the suite names (the original searches the whole"
    " training set)"
)
PERCENTILES = (75, 90, 95)
ROWS = 1024  # of similarities at once


class SscdDcr23(PaperSscd, Metric):
    """Similarity as DCR (2023) reports it: the nearest of all training pictures, its mean,
    deviation, percentiles and share above 0.5 over generations.
    """

    names: ClassVar[tuple[str, ...]] = (
        "sscd_dcr23_mean",
        "sscd_dcr23_std",
        *(f"sscd_dcr23_p{percentile}" for percentile in PERCENTILES),
        "sscd_dcr23_share",
    )
    over_prompts: ClassVar[Mapping[str, str]] = {"sscd_dcr23_std": "std"} | {
        f"sscd_dcr23_p{percentile}": "percentile" for percentile in PERCENTILES
    }
    shown: ClassVar[Mapping[str, Shown]] = {
        "sscd_dcr23_mean": PAPER.shown("SSCD mean (DCR)", f"{NEAREST}, mean over generations"),
        "sscd_dcr23_std": PAPER.shown(
            "SSCD std (DCR)", f"{NEAREST}, standard deviation over generations"
        ),
        "sscd_dcr23_share": PAPER.shown(
            "SSCD > 0.5 (DCR)", f"{NEAREST}, share of generations above {ABOVE}"
        ),
    } | {
        f"sscd_dcr23_p{percentile}": PAPER.shown(
            f"SSCD p{percentile} (DCR)", f"{NEAREST}, {percentile}th percentile over generations"
        )
        for percentile in PERCENTILES
    }
    paper: ClassVar[Paper] = PAPER

    def measure(self, evaluation: Evaluation) -> Mapping[str, PerImage | Unmeasurable]:
        """All generations of the memorized prompts, those whose own picture was lost too.

        Raises `Unmeasurable` when the suite has no training picture.
        """
        samples = evaluation.samples("memorized")
        listed = evaluation.suite.training_pictures
        if not listed:
            raise Unmeasurable("the suite's prompts have no training pictures")
        extractor = evaluation.loaded(
            CopyDescriptor(evaluation.path(self.weights), self.paper.profile, evaluation.device)
        )
        generated = samples.features(extractor)
        references = extractor([read_picture(path) for path in listed])
        details = self.details(
            samples.images,
            searched=SEARCHED,
            references=len(listed),
            background=background(references),
            profile=self.paper.profile,
            weights_sha256=extractor.digest,
            n_expected=len(samples.prompts),
            n_found=sum(bool(prompt.references) for prompt in samples.prompts),
        )
        nearest = top1(generated.reshape(-1, generated.shape[-1]), references).reshape(
            generated.shape[:2]
        )
        mean = PerImage(nearest, samples.prompts, "cosine", False, details=details)
        return {
            "sscd_dcr23_mean": mean,
            "sscd_dcr23_std": replace(
                mean, unit="cosine, deviation", higher_is_better=None, statistic="std"
            ),
            **{
                f"sscd_dcr23_p{percentile}": replace(mean, percentile=percentile)
                for percentile in PERCENTILES
            },
            "sscd_dcr23_share": above(mean),
        }


def top1(generated: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Similarity of each of `[n, d]` to the nearest of `[m, d]`, all unit vectors."""
    return np.concatenate(
        [
            (generated[start : start + ROWS] @ references.T).max(1)
            for start in range(0, len(generated), ROWS)
        ]
    )


def background(references: np.ndarray) -> dict[str, float]:
    """How similar training pictures are to each other: the statistics of the second nearest of
    each; empty for a single one.
    """
    if len(references) < 2:
        return {}
    parts = [
        np.partition(references[start : start + ROWS] @ references.T, -2, axis=1)[:, -2]
        for start in range(0, len(references), ROWS)
    ]
    second = np.concatenate(parts)
    found = {
        "mean": float(second.mean()),
        "std": float(stats.std(second)),
        "share": float((second > ABOVE).mean()),
    }
    return found | {
        f"p{percentile}": float(np.percentile(second, percentile)) for percentile in PERCENTILES
    }
