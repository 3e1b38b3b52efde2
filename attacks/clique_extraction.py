"""Extraction by cliques (Carlini et al., USENIX Security 2023, arXiv:2301.13188, section 4): no
training picture is needed to find one.

Many pictures are generated for a prompt. Two of them are joined when they agree everywhere: the
largest distance over corresponding tiles is at most a threshold. A large clique, so pictures that
are all the same, betrays a memorized training picture. Public code looks for connected components
instead, which chains of unlike pictures form too; here cliques are searched exactly, on exact
integer distances, and a search that runs out of its budget says `unknown`. Representatives are then
compared with the training pictures, which the attacker does not need but a benchmark has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from pydantic import Field, model_validator

import bench.statistics as stats
from attacks._account import NAMES, account
from attacks._calibration import (
    Calibration,
    allowed,
    nearest_pair,
    operating_point,
    prompts_digest,
    read_calibration,
    threshold_below,
)
from attacks._candidates import candidates, once, spread
from attacks._exact import normalised, squared_limit, stacked
from attacks._findings import Finding, examine
from attacks._tiles import distances, tile_elements
from attacks._training_set import TrainingSet
from attacks._verification import References, Verified, verified
from bench import (
    EXHIBITS,
    IMAGES_PER_PROMPT,
    Attack,
    Exhibit,
    Prompt,
    SampleSet,
    Scores,
    Suite,
    Target,
    UnknownName,
    UserError,
    design_of,
    evenly,
)
from bench.features import PROFILES, CopyDescriptor

CHANNELS = 3
SHOWN = 3  # members of a clique that an exhibit shows


class CliqueExtraction(Attack):
    """Prompts whose generations agree everywhere (cliques, Carlini et al. 2023): how many betray a
    training picture, exact and verified.
    """

    names: ClassVar[tuple[str, ...]] = NAMES
    files: ClassVar[tuple[str, ...]] = ("calibration", "training", "descriptor")
    trial: ClassVar[Mapping[str, Any]] = {
        "images": 3,
        "clique": 2,
        "threshold": 0.2,
        "clean_prompts": 2,
    }

    images: int = Field(500, ge=2, le=IMAGES_PER_PROMPT, description="generations a prompt")
    clique: int = Field(
        10, ge=2, description="a clique of at least this many generations flags the prompt"
    )
    tiles: int = Field(4, ge=1, description="tiles a side: 4 cuts a picture into 16")
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "normalised tile distance up to which two generations are the same; or give a"
            " calibration"
        ),
    )
    calibration: str = Field(
        "",
        description=(
            "file of `bench calibrate clique_extraction` that has the threshold, relative to the"
            " suite file"
        ),
    )
    rate: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="calibration: share of clean prompts of which two generations may be joined",
    )
    calibration_prompts: int = Field(
        100,
        ge=1,
        description="calibration: this many prompts of the role calibration, evenly spread",
    )
    clean_prompts: int = Field(
        0,
        ge=0,
        description=(
            "this many prompts of the role clean, evenly spread, join the candidates; a flagged one"
            " is an error"
        ),
    )
    verification: float = Field(
        0.15,
        gt=0,
        le=1,
        description="normalised l2 of whole pictures up to which one is a copy of the other",
    )
    training: str = Field(
        "",
        description=(
            "Parquet shards or a folder of training pictures to verify against; the suite's"
            " reference pictures by default"
        ),
    )
    descriptor: str = Field(
        "",
        description=(
            "weights of a copy descriptor, to verify by similarity beside; none by default"
        ),
    )
    profile: str = Field("nemo", description=f"of the descriptor: one of {', '.join(PROFILES)}")
    similarity: float = Field(0.7, gt=-1, lt=1, description="of the descriptor: a copy above it")
    budget: int = Field(
        200_000,
        ge=1,
        description="nodes of each search for a clique; beyond them the status is unknown",
    )
    early_stop: bool = Field(
        False,
        description=(
            "stop generating for a prompt once it is flagged: the same flags, smaller cliques, no"
            " recall"
        ),
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> CliqueExtraction:
        if self.threshold is not None and self.calibration:
            raise ValueError("threshold and calibration exclude each other")
        if self.images < self.clique:
            raise ValueError(f"{self.images} images cannot hold a clique of {self.clique}")
        if self.profile not in PROFILES:
            raise UnknownName("SSCD profile", self.profile, PROFILES)
        return self

    def fits(self, suite: Suite) -> None:
        side = suite.settings.model.side
        tile_elements((1, side, side, CHANNELS), self.tiles)
        if self.threshold is None and not self.calibration:
            raise UserError(
                "attack clique_extraction needs a threshold, or a calibration that `bench calibrate"
                " clique_extraction` writes"
            )
        if self.calibration:
            self._calibration(suite)
        candidates(suite, self.clean_prompts)

    def _calibration(self, suite: Suite) -> Calibration:
        if not suite.place(self.calibration).is_file():
            raise UserError(
                f"calibration {self.calibration} is not there yet; make it: bench calibrate"
                f" clique_extraction --suite {suite.file}"
            )
        wanted = operating_point(suite, self.images, self.tiles) | {
            "rate": self.rate,
            "prompts": self.calibration_prompts,
        }
        return read_calibration(suite.path(self.calibration), wanted)

    def asks(self, suite: Suite) -> Sequence[tuple[Sequence[Prompt], int]]:
        memorized, clean = candidates(suite, self.clean_prompts)
        return [([*memorized, *clean], self.images)]

    def adaptive(self) -> bool:
        return self.early_stop

    def calibrate(self, target: Target) -> dict[str, Any]:
        """The threshold at which prompts of the role calibration have an edge at most at `rate`,
        with the distances it follows from.
        """
        side = target.suite.settings.model.side
        elements = tile_elements((1, side, side, CHANNELS), self.tiles)
        prompts = spread(
            once(target.suite.prompts("calibration")), self.calibration_prompts, "calibration"
        )
        allowed(self.rate, len(prompts))
        samples = target.generate(prompts, self.images)
        nearest = []
        for row in range(len(prompts)):
            nearest.append(
                nearest_pair(distances(stacked(samples.pictures_of(row), 2), self.tiles))
            )
            target.report("calibrate", row + 1, len(prompts))
        threshold = threshold_below(nearest, self.rate, elements)
        joined = sum(distance <= squared_limit(threshold, elements) for distance in nearest)
        return Calibration(
            threshold=threshold,
            rate=self.rate,
            joined=joined,
            joined_interval=stats.clopper_pearson(joined, len(prompts)),
            prompts=len(prompts),
            prompts_sha256=prompts_digest(prompts),
            nearest_pairs=sorted(round(normalised(distance, elements), 6) for distance in nearest),
            operating_point=operating_point(target.suite, self.images, self.tiles),
        ).model_dump(mode="json")

    def run(self, target: Target) -> Scores:
        """Flag, represent, rank, verify."""
        suite, side = target.suite, target.suite.settings.model.side
        calibration = self._calibration(suite) if self.calibration else None
        threshold = calibration.threshold if calibration else self.threshold
        assert threshold is not None
        limit = squared_limit(threshold, tile_elements((1, side, side, CHANNELS), self.tiles))
        references = References(suite)
        training = (
            TrainingSet.open(suite.path(self.training), side)
            if self.training
            else references.training
            if references.paths
            else None
        )
        copy_limit = squared_limit(self.verification, references.elements)
        known = (
            references.described(
                CopyDescriptor(suite.path(self.descriptor), self.profile, target.device)
            )
            if self.descriptor and references.paths
            else None
        )
        memorized, clean = candidates(suite, self.clean_prompts)
        findings = self._search(target, [*memorized, *clean], limit, references, copy_limit)
        found = verified(
            [finding for finding in findings if finding.flagged],
            training,
            copy_limit,
            known,
            target.report,
        )
        target.exhibits.extend(
            exhibit(target, one, references if training is references.training else None)
            for one in found[:EXHIBITS]
        )
        details = {
            "images": self.images,
            "clique": self.clique,
            "tiles": self.tiles,
            "threshold": threshold,
            "side": side,
            "verification": self.verification,
            "training": self.training or f"{len(references.paths)} reference pictures",
            "resize": training.policy if training else "",
            "early_stop": self.early_stop,
            "tie": "first",
            "images_used": sum(finding.images for finding in findings),
        }
        if calibration:
            details["calibration"] = calibration.model_dump(
                mode="json",
                include={"rate", "joined", "joined_interval", "prompts", "prompts_sha256"},
            )
        if self.descriptor:
            details |= {"profile": self.profile, "similarity": self.similarity}
        return account(
            findings,
            found,
            {prompt.text for prompt in memorized},
            self.clique,
            copy_limit,
            self.similarity if known is not None else None,
            details,
            verifiable=training is not None,
            design=stats.Design(design_of(suite, "memorized").clusters),
        )

    def _search(
        self,
        target: Target,
        asked: Sequence[Prompt],
        limit: int,
        references: References,
        copy_limit: int,
    ) -> list[Finding]:
        """A finding for each candidate, in order.

        With early stop, generations double until a prompt is flagged or has them all.
        """
        sizes = [self.images]
        while self.early_stop and sizes[0] // 2 >= self.clique:
            sizes.insert(0, sizes[0] // 2)
        found: dict[str, Finding] = {}
        for size in sizes:
            rest = [
                prompt
                for prompt in asked
                if prompt.text not in found or not found[prompt.text].flagged
            ]
            if not rest:
                break
            samples = target.generate(rest, size)
            findings = target.map(
                partial(self._examined, samples, limit, references, copy_limit), enumerate(rest)
            )
            for done, finding in enumerate(findings, 1):
                found[finding.prompt.text] = finding
                target.report("cliques", done, len(rest))
        return [found[prompt.text] for prompt in asked]

    def _examined(
        self,
        samples: SampleSet,
        limit: int,
        references: References,
        copy_limit: int,
        asked: tuple[int, Prompt],
    ) -> Finding:
        row, prompt = asked
        pictures = stacked(samples.pictures_of(row), 2)
        return examine(
            prompt,
            pictures,
            self.tiles,
            limit,
            self.clique,
            self.budget,
            references.copies(prompt, pictures, copy_limit),
        )


def exhibit(target: Target, one: Verified, references: References | None) -> Exhibit:
    """For the record: the clique's representative and members spread over it, beside the reference
    picture that they betray.
    """
    finding, match = one.finding, one.match
    others = [member for member in finding.members if member != finding.medoid]
    shown = [finding.medoid, *(others[row] for row in evenly(len(others), SHOWN - 1))]
    pictures = target.generate([finding.prompt], finding.images).pictures_of(0)
    verdict = (
        f"a copy of training picture {match.name}, l2 {match.distance:.3f}"
        if match
        else "no training picture is that near"
    )
    return Exhibit(
        finding.prompt,
        f"{len(finding.members)} of {finding.images} generations agree; {verdict}",
        [pictures[member] for member in shown],
        references.picture(match.name) if references and match else None,
    )
