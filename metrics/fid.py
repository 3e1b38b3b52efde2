"""Picture quality: the Frechet distance to real pictures, with clean-fid's resizing and features
and our own, exact distance.

FID falls with the number of images, so the number is the suite's and part of the score; fewer are
refused. Two sets of real pictures are in use for captions of real pictures, and give different
numbers: a whole collection, and the originals of just these captions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, model_validator

from bench import (
    Evaluation,
    Metric,
    PerImage,
    PerSet,
    Role,
    SampleSet,
    Shown,
    Suite,
    Unmeasurable,
    UserError,
    path_digest,
)
from bench.features import CleanFeatures, crop_name, originals, pictures_in, statistics_of
from bench.statistics import Statistics, first_rows, frechet_distance, moments, read_statistics
from metrics._features import FeatureMetric


class _Names:
    """The scores that the settings ask for; of the class, those that need nothing but a
    reference.
    """

    def __get__(self, metric: Fid | None, owner: type[Fid]) -> tuple[str, ...]:
        return (
            ("fid",)
            if metric is None
            else (
                *(("fid",) if metric.statistics or metric.real else ()),
                *(("fid_matched",) if metric.matched else ()),
            )
        )


class Fid(FeatureMetric, Metric):
    """Frechet distance between features of generations and of real pictures, clean-fid semantics.

    `fid` is to a whole collection: reference `statistics`, or a folder of `real` pictures, whose
    statistics are measured once. `fid_matched` is to the originals that the prompts themselves name
    as their references.
    """

    names: ClassVar[Any] = _Names()
    roles: ClassVar[tuple[Role, ...]] = ("quality",)
    files: ClassVar[tuple[str, ...]] = ("weights", "statistics", "real")
    shown: ClassVar[dict[str, Shown]] = {
        "fid_matched": Shown(
            heading="FID matched",
            decimals=2,
            meaning=(
                "Frechet distance to the originals of the captions, at the stated number of images"
            ),
        )
    }

    statistics: str = Field(
        "",
        description=(
            "`.npz` with `mu`, `sigma`, `n` of the real pictures' features; `bench statistics`"
            " makes one"
        ),
    )
    real: str = Field("", description="folder of real pictures, instead of `statistics`")
    matched: bool = Field(
        False,
        description="also `fid_matched`: against the pictures that the prompts name as references",
    )

    @model_validator(mode="after")
    def _one_reference(self) -> Fid:
        if self.statistics and self.real:
            raise ValueError("statistics and real are two ways to say the same: give one of them")
        if not (self.statistics or self.real or self.matched):
            raise ValueError("nothing to compare with: give statistics, real or matched")
        if self.statistics and self.real_side and not self.matched:
            raise ValueError(
                "real_side says how real pictures are cut, and statistics were made of pictures cut"
                " before: leave it out"
            )
        return self

    def fits(self, suite: Suite) -> None:
        if self.statistics:
            read_statistics(suite.path(self.statistics))

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet | Unmeasurable]:
        """Moments of the images once; then each distance, or the reason why there is none."""
        samples, extractor = self.enough(evaluation, "FID"), self.network(evaluation)
        generated = moments(first_rows(samples.feature_blocks(extractor), self.images))
        scores: dict[str, PerImage | PerSet | Unmeasurable] = {}
        for name in self.names:
            try:
                real = (
                    self._whole(evaluation, extractor, len(generated.mu))
                    if name == "fid"
                    else self._originals(evaluation, samples, extractor)
                )
                scores[name] = self._score(evaluation, samples, extractor, generated, real)
            except Unmeasurable as why:
                scores[name] = why
        return scores

    def _whole(self, evaluation: Evaluation, extractor: CleanFeatures, dims: int) -> Statistics:
        if self.real:
            return statistics_of(
                pictures_in(evaluation.path(self.real), self.real_side),
                extractor,
                evaluation.cache,
                evaluation.report,
            )
        file = evaluation.path(self.statistics)
        known = read_statistics(file, dims)
        self.refuse_other_network(known, extractor)
        if self.real_side and known.crop not in ("", crop_name(self.real_side)):
            raise UserError(
                f"reference statistics {self.statistics} were made with the cut '{known.crop}', and"
                f" real_side is {self.real_side}"
            )
        # A file that does not say which pictures it was made of is named by itself.
        return (
            known if known.digest else replace(known, pictures=file.name, digest=path_digest(file))
        )

    def _originals(
        self, evaluation: Evaluation, samples: SampleSet, extractor: CleanFeatures
    ) -> Statistics:
        """Of the references of those prompts whose images are measured."""
        prompts = samples.prompts[: -(-self.images // samples.images)]
        return statistics_of(
            originals(prompts, self.real_side), extractor, evaluation.cache, evaluation.report
        )

    def _score(
        self,
        evaluation: Evaluation,
        samples: SampleSet,
        extractor: CleanFeatures,
        generated: Statistics,
        real: Statistics,
    ) -> PerSet:
        value = frechet_distance(generated.mu, generated.sigma, real.mu, real.sigma)
        suite = evaluation.suite
        details = {
            "mode": "clean",
            "size": self.size,
            "weights_sha256": extractor.digest,
            "dims": len(generated.mu),
            "real": real.pictures,
            "real_images": real.n,
            "real_sha256": real.digest,
            "crop": real.crop or "unknown",
            "generated_side": suite.settings.model.side,
            "captions_sha256": path_digest(suite.path(suite.settings.prompts["quality"].file)),
        }
        return PerSet(
            value, self.images, "distance", False, prompts=len(samples.prompts), details=details
        )
