"""What a metric is: one class that reads sample sets and gives numbers, and what it gets to
read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from pydantic import BaseModel, ConfigDict

from bench.base.errors import Unmeasurable, UserError
from bench.base.progress import Report, silent
from bench.contracts.samples import SampleSet, Timing
from bench.features.extractor import AnyExtractor, Extractor
from bench.statistics.intervals import StatisticName

if TYPE_CHECKING:
    from bench.contracts.target import Target
    from bench.records.record import Shown
    from bench.suite.prompts import Prompt
    from bench.suite.schema import Role
    from bench.suite.suite import Suite


@dataclass(frozen=True)
class Evaluation:
    """What a metric may read: the suite, the samples by role, the device; and a stopwatch."""

    suite: Suite
    device: Any
    samples_of: Callable[[Role], SampleSet]
    time: Callable[[Role, int, int], Timing]  # (role, rounds, images a round)
    fit_seconds: float = 0.0
    fit_rows: int = 0
    report: Report = silent
    # for what is the same in every run, such as features of real pictures; no suite's name begins
    # so
    cache: Path = Path("runs/store/_real")
    loaded_: Callable[[Extractor], Extractor] | None = None

    def loaded(self, extractor: AnyExtractor) -> AnyExtractor:
        """The same extractor, with its network if this run has loaded it already: each is loaded
        once, however many metrics ask.
        """
        return cast(AnyExtractor, self.loaded_(extractor)) if self.loaded_ else extractor

    def samples(self, role: Role) -> SampleSet:
        """The samples of a role. Raises `Unmeasurable` when the suite has no such prompts."""
        if not self.suite.prompts(role):
            raise Unmeasurable(f"the suite has no prompts of the role {role}")
        return self.samples_of(role)

    def path(self, relative: str) -> Path:
        """A file that the suite's settings of this metric name."""
        return self.suite.path(relative)


@dataclass(frozen=True)
class PerImage:
    """A score that every image has, or every prompt with a single column.

    `table` `[prompts, images]`.

    The harness adds the mean (or `percentile`, or another `statistic`), its interval and groups.
    Where `details` has `n_expected` and `n_found`, prompts with and without training pictures among
    them, and not all were found, the record gets a warning.
    """

    table: np.ndarray
    prompts: Sequence[Prompt]
    unit: str
    higher_is_better: bool | None
    percentile: float | None = None
    proportion: bool = False
    statistic: StatisticName = "mean"  # over all entries; a percentile takes its place
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PerSet:
    """A score that only a whole set has, with an interval where the metric knows one."""

    value: float
    n: int
    unit: str
    higher_is_better: bool | None
    interval: tuple[float, float] | None = None
    prompts: int = 0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OfTables:
    """A number of a whole set that follows from tables `[pictures, images]` by name, so that
    several generations of the same pictures can be judged as one set: their images stand side by
    side in the rows of their pictures, and the number follows from what comes of that.

    `number` takes the tables, or those of several generations joined, to the score.
    """

    tables: Mapping[str, np.ndarray]
    number: Callable[[Mapping[str, np.ndarray]], PerSet | Unmeasurable]

    def alone(self) -> PerSet | Unmeasurable:
        """The number of these tables."""
        return self.number(self.tables)


class Metric(BaseModel):
    """Derive one class per file; typed fields are settings that a suite gives.

    `cost` says that the numbers belong under cost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: ClassVar[tuple[str, ...]] = ()  # of the scores it gives
    roles: ClassVar[tuple[Role, ...]] = ()  # of the prompts it reads
    files: ClassVar[tuple[str, ...]] = ()  # of its fields, those that name files of the suite
    cost: ClassVar[bool] = False
    # of its scores that are no mean: a statistic, or "percentile"
    over_prompts: ClassVar[Mapping[str, str]] = {}
    # of its scores, those that leave out prompts without a training picture
    pictured: ClassVar[tuple[str, ...]] = ()
    # of its scores, those whose tables have a single column
    one_a_prompt: ClassVar[tuple[str, ...]] = ()
    # of its scores: heading, decimals and meaning in tables; a score without them has no column
    shown: ClassVar[Mapping[str, Shown]] = {}
    version: ClassVar[int] = 1
    # of its fields, the one that names the file of its calibration
    calibrated: ClassVar[str] = ""
    # settings with which `bench check` tries it on its tiny suite, where that names none
    trial: ClassVar[Mapping[str, Any]] = {}

    def fits(self, suite: Suite) -> None:
        """Asked before any work.

        Raises `UserError` when these settings cannot work on the suite.
        """

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        """Of roles whose pictures it reads through these extractors alone: which ones (none of
        them: it reads no picture).

        Their features are then made while the pictures are in memory, and pictures may be dropped
        afterwards (`--keep-images`). Of a role that is not named here every picture is kept.
        """
        return {}

    def calibrate(self, target: Target) -> dict[str, Any]:
        """What must be measured once on the model without mitigation before the metric can be used:
        the content of a JSON file (`bench calibrate`). The target's generations are of seeds that
        no score uses.
        """
        raise UserError(f"metric {type(self).__name__} has nothing to calibrate")

    def role_of(self, name: str) -> Role:
        """The role whose prompts a score is of: the one that its name ends with, else the first."""
        return next((role for role in self.roles if name.endswith(f"_{role}")), self.roles[0])

    def measured(self, suite: Suite, name: str) -> tuple[Prompt, ...]:
        """The prompts that a `PerImage` score is of: those of its role that have what it needs."""
        prompts = suite.prompts(self.role_of(name))
        return tuple(p for p in prompts if p.references or name not in self.pictured)

    def measure(self, evaluation: Evaluation) -> Mapping[str, PerImage | PerSet | Unmeasurable]:
        """All scores by name, an `Unmeasurable` in place of a number that there is not.

        Raises `Unmeasurable` with the reason when there is none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it measures: define measure(self, evaluation)"
        )
