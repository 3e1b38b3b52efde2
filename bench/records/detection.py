"""The file of one detector on one suite (`bench detect`): every score with its prompt, from which
all numbers of the board follow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.base.digests import digest_of
from bench.base.files import write_atomically
from bench.records.files import load_below, load_file
from bench.records.record import NAME, Count, Number, RecordedDesign
from bench.statistics.units import Units

COPIED = 0.5  # a prompt counts as copied when this share of its images is, as for the metric copies


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OverSteps(_Strict):
    """A detector's reading at every step, over the prompts of one kind."""

    low: list[Number] = Field(description="tenth percentile")
    middle: list[Number] = Field(description="median")
    high: list[Number] = Field(description="ninetieth percentile")


class Detection(_Strict):
    """The content of `leaderboards/detections/<suite>/<detector>-<digits>.json`."""

    schema_version: Literal[1] = 1
    suite: str = Field(pattern=NAME)
    suite_version: Count
    protocol: str = Field(description="fingerprint of everything that decides a score")
    detector: str = Field(pattern=NAME)
    detector_version: Count
    source: str | None = Field(description="digest of code that is not built in")
    needs: str
    paper: str = ""
    parameters: dict[str, Any]
    changed: dict[str, Any] = Field(description="parameters that are not the detector's defaults")
    images: Count = Field(description="images of each prompt")
    copied: dict[str, float] | None = Field(
        description="by memorized prompt, which share of its images is a copy; null: not known"
    )
    copies: dict[str, list[int]] = Field(
        default_factory=dict, description="by memorized prompt, which of these images are copies"
    )
    groups: dict[str, str] = Field(default_factory=dict, description="of memorized prompts")
    group_name: str = "group"
    design: dict[str, RecordedDesign] = Field(
        default_factory=dict,
        description=(
            "by kind of prompt, which stand or fall together; of a kind without, each is a unit"
        ),
    )
    scores: dict[str, dict[str, list[Number]]] = Field(
        description="by kind of prompt and prompt id: one for each image, or a single one"
    )
    of_prompt: dict[str, dict[str, Number]] = Field(
        description="by kind and prompt id: the prompt's one score, of all its images"
    )
    of_first: dict[str, dict[str, Number]] = Field(
        description="the same of its first image alone; empty where one image gives none"
    )
    over_steps: dict[str, OverSteps] = Field(default_factory=dict)
    rows_alone: Number = Field(description="row evaluations an image, if nothing else needs it")
    rows_on_top: Number = Field(
        description="row evaluations an image, where it is generated anyway"
    )
    seconds: Number = Field(description="of scoring, a prompt; without sampling")
    kept_bytes: Count = Field(description="what is stored of each image's sampling")
    environment: dict[str, Any]

    @property
    def label(self) -> str:
        """`wen` or `wen (steps=5)`."""
        words = ", ".join(f"{name}={value}" for name, value in sorted(self.changed.items()))
        return f"{self.detector} ({words})" if words else self.detector

    def units(self, kind: str, prompts: Sequence[str]) -> Units | None:
        """What varies independently among some prompts of a kind; None where each of them does."""
        known = self.design.get(kind)
        return known.design.units(prompts) if known and prompts else None

    @property
    def file_name(self) -> str:
        """The name of its file: the same question to the same code has the same one."""
        content = [self.protocol, self.detector_version, self.source, self.parameters]
        return f"{self.detector}-{digest_of(content)[:8]}.json"

    def save(self, folder: Path) -> Path:
        """Write the file below `<folder>/<suite>`, atomically; returns its path."""
        path = folder / self.suite / self.file_name
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        write_atomically(path, (content + "\n").encode())
        return path


def load_detection(path: Path) -> Detection:
    """Read one file. Raises `UserError` when it is missing, damaged or of another form."""
    return load_file(path, Detection, "detection")


def load_detections(folder: Path) -> tuple[list[Detection], list[tuple[str, str]]]:
    """All files below a folder; and of each that cannot be used, its suite and what is wrong."""
    return load_below(folder, load_detection)
