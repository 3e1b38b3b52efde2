"""The columns that tables have before any plug-in adds its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# scores whose heading says the number of images, because they fall with it
SIZED = ("fid", "fid_matched")
# no score of a record: what it says of the choice of its parameters
TUNING = "tuning_nfe"


@dataclass(frozen=True)
class Column:
    """One number of the table: where it is in a record, its heading, decimals, and what it
    means.
    """

    name: str
    heading: str
    decimals: int
    meaning: str
    part: Literal["scores", "cost", "attacks"] = "scores"  # of a record
    higher_is_better: bool | None = False
    threat: str = ""  # of an attack: what its attacker holds, `api` or `weights`

    @property
    def plain(self) -> str:
        """The heading without its arrow, for use in a sentence."""
        return self.heading.removesuffix(" ↓").removesuffix(" ↑")


# The built-in scores, in the order of the tables. What a plug-in declares (`Score.shown`) comes
# after those of its part.
COLUMNS = (
    Column(
        "copies",
        "copies ↓",
        3,
        "share of images above the suite's threshold, over the held-out prompts that the model"
        " copies without a mitigation",
    ),
    Column(
        "sscd_copied",
        "SSCD copied ↓",
        3,
        "mean similarity of a generation to its training picture under a copy descriptor, over the"
        " same prompts",
    ),
    Column(
        "copies_sometimes",
        "copies, sometimes ↓",
        3,
        "share of images above the threshold, over prompts that the model copies less often, but"
        " sometimes",
    ),
    Column(
        "copies_never",
        "copies, never ↓",
        3,
        "share of images above the threshold, over prompts that the model never copies without a"
        " mitigation",
    ),
    Column(
        "any_copy",
        "any copy ↓",
        3,
        "share of images of memorized prompts whose similarity to any training picture of the suite"
        " exceeds the threshold",
    ),
    Column("any_copy_clean", "any copy, clean ↓", 3, "the same of clean prompts"),
    Column(
        "sscd",
        "SSCD ↓",
        3,
        "mean similarity of a generation to its training picture under a copy descriptor, held-out"
        " memorized prompts",
    ),
    Column("sscd_p95", "SSCD p95 ↓", 3, "95th percentile of the same similarity over images"),
    Column(
        "memorized_ratio",
        "memorized ↓",
        3,
        "share of images whose similarity exceeds the suite's threshold",
    ),
    Column(
        "diversity",
        "diversity ↑",
        3,
        "one minus the mean similarity between images of one memorized prompt",
        higher_is_better=True,
    ),
    Column(
        "clip_score",
        "CLIP ↑",
        3,
        "cosine of picture and original prompt, memorized prompts",
        higher_is_better=True,
    ),
    Column(
        "clip_score_clean",
        "CLIP clean ↑",
        3,
        "cosine of picture and prompt, clean prompts",
        higher_is_better=True,
    ),
    Column(
        "recognised",
        "recognised ↑",
        3,
        "share of clean generations whose most likely object, by a classifier of real pictures, is"
        " one that the prompt names",
        higher_is_better=True,
    ),
    Column(
        "fid",
        "FID ↓",
        2,
        "Frechet distance to real pictures at the stated number of images; not comparable across"
        " numbers",
    ),
    Column(
        "clique_identified",
        "identified ↓",
        3,
        "share of memorized prompts that the clique extraction attack flags",
        "attacks",
        threat="api",
    ),
    Column(
        "clique_extracted",
        "extracted ↓",
        3,
        "share of memorized prompts that it flags and whose pictures are a copy of a training"
        " picture",
        "attacks",
        threat="api",
    ),
    Column(
        "knn_extracted",
        "kNN extracted ↓",
        3,
        "share of images much nearer to one training picture than to its neighbours (untargeted"
        " attack)",
        "attacks",
        threat="api",
    ),
    Column(
        "time_ratio_clean",
        "time ×",
        2,
        "seconds for images of clean prompts against no mitigation, measured in turn on one"
        " machine, sum over sum; fastest to slowest round",
        "cost",
    ),
    Column("time_ratio", "time × memorized", 2, "the same for memorized prompts", "cost"),
    Column(
        "nfe_per_image_clean",
        "NFE",
        1,
        "model evaluations per image of clean prompts, counted over all of them (one row through"
        " the UNet is one)",
        "cost",
    ),
    Column("nfe_per_image", "NFE memorized", 1, "the same for memorized prompts", "cost"),
    Column("fit_seconds", "fit s", 1, "seconds of offline fitting", "cost"),
    Column("fit_nfe", "fit NFE", 0, "model evaluations of offline fitting", "cost"),
    Column(
        TUNING,
        "tuning NFE",
        0,
        "model evaluations of `bench tune`, which chose the parameters: of all settings that it"
        " tried",
        "cost",
    ),
)
BY_NAME = {column.name: column for column in COLUMNS}
# What columns of memorized prompts mean in the track `removal`, where these are named to methods.
NAMED = {
    "copies": "share of images above the suite's threshold, over the named prompts, which methods"
    " learned from and which the model copies without a mitigation",
    "sscd": "mean similarity of a generation to its training picture under a copy descriptor, named"
    " memorized prompts",
}
