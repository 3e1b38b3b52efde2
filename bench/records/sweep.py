"""The file of a strength curve (`bench sweep`): one method at several strengths on the held-out
prompts of one suite, with the values by prompt that intervals need.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench.base import limits
from bench.base.files import write_atomically
from bench.records.files import load_below, load_file
from bench.records.record import Number, RecordedDesign

# What a curve is drawn of; the first of each pair that the suite measures counts.
REPLICATION = ("copies", "sscd")
UTILITY = ("clip_score_clean", "clip_score")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Strict):
    """One score of one point, with its 95 % interval where it has one."""

    value: Number
    low: Number | None = None
    high: Number | None = None


class Point(_Strict):
    """One strength; without scores where it could not be measured, and `error` says why."""

    strength: float | None = Field(description="null: without any method")
    scores: dict[str, Measured] = Field(default_factory=dict)
    per_prompt: dict[str, dict[str, Number]] = Field(
        default_factory=dict, description="of replication and utility: prompt id to mean"
    )
    error: str = ""


class Sweep(_Strict):
    """The content of a file in `leaderboards/sweeps/<suite>`; points from least to most."""

    schema_version: Literal[1] = 1
    suite: str
    suite_version: int
    suite_fingerprint: str
    method: str
    method_version: int
    source: str | None
    field: str = Field(description="the parameter that is varied")
    parameters: dict[str, Any] = Field(description="those that are the same at every point")
    seeds: int = Field(
        default=1, ge=1, le=limits.GENERATIONS, description="independent generations of every image"
    )
    replication: str
    utility: str
    none: Point
    points: list[Point]
    design: dict[str, RecordedDesign] | None = Field(
        default=None,
        description=(
            "by score, which of its prompts stand or fall together; of a score without, each is a"
            " unit. null: not known, in files from before it was kept"
        ),
    )
    environment: dict[str, Any]

    @field_validator("points")
    @classmethod
    def _one_way(cls, points: list[Point]) -> list[Point]:
        # Between two neighbours a curve is taken to change evenly: another order is another curve.
        strengths = [point.strength for point in points if point.strength is not None]
        if strengths not in (sorted(strengths), sorted(strengths, reverse=True)):
            raise ValueError("strengths must rise or fall from each point to the next")
        return points

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        content = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)
        write_atomically(path, (content + "\n").encode())

    @property
    def label(self) -> str:
        """`wanda (sparsity)`, with the parameters that are not the method's defaults."""
        fixed = "".join(f", {name}={value}" for name, value in sorted(self.parameters.items()))
        return f"{self.method} ({self.field}{fixed})"

    @property
    def of_seeds(self) -> str:
        """`, 3 seeds` where there are several."""
        return f", {self.seeds} seeds" if self.seeds > 1 else ""

    @property
    def file_name(self) -> str:
        """The name of its file in the folder of its suite: a curve of several seeds stands beside
        that of one.
        """
        seeds = f"-{self.seeds}-seeds" if self.seeds > 1 else ""
        return f"{self.method}{seeds}.json"

    def measured(self) -> list[Point]:
        """`none` and the points that have scores, from least to most."""
        return [self.none, *(point for point in self.points if point.scores)]


def load_sweep(path: Path) -> Sweep:
    """Read one file. Raises `UserError` when it is missing, damaged or of another form."""
    return load_file(path, Sweep, "curve")


def load_sweeps(folder: Path) -> tuple[list[Sweep], list[tuple[str, str]]]:
    """All files below a folder; and of each that cannot be used, its suite and what is wrong."""
    return load_below(folder, load_sweep)
