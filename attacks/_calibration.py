"""The edge threshold of the clique attack, measured: the largest at which clean prompts give two
generations that agree at most at a stated rate.

An edge is to say "the same picture", so among generations of clean prompts there should be next to
none. A clique needs many edges, so clean prompts are flagged at most at this rate, whatever the
size of the clique. The threshold that Carlini et al. (2023) used was never published, and none
carries over to another model, size, sampler or number of generations.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attacks._exact import normalised, squared_limit
from bench import Prompt, Suite, UserError, digest_of, one_line, read_table, validation_line

STEP = 10_000  # thresholds are multiples of 1 / STEP, so that a record says them in full


class Calibration(BaseModel):
    """The file that `bench calibrate clique_extraction` writes: a threshold, and everything that it
    holds for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    threshold: float = Field(gt=0, le=1, description="normalised tile distance")
    rate: float = Field(
        gt=0, lt=1, description="share of clean prompts with an edge that was allowed"
    )
    joined: int = Field(
        ge=0, description="clean prompts with an edge at the threshold; only these can be flagged"
    )
    joined_interval: tuple[float, float] = Field(
        description="Clopper-Pearson interval of their share, 95 %"
    )
    prompts: int = Field(ge=1)
    prompts_sha256: str
    nearest_pairs: list[float] = Field(
        description=(
            "of every clean prompt, the distance of its two most similar generations; ascending"
        )
    )
    operating_point: dict[str, Any] = Field(
        description="images, tiles, side and the hash of model and sampler"
    )


def operating_point(suite: Suite, images: int, tiles: int) -> dict[str, Any]:
    """What a calibration depends on. One made for another is refused."""
    return {
        "images": images,
        "tiles": tiles,
        "side": suite.settings.model.side,
        "generation": digest_of(suite.generation)[:16],
    }


def read_calibration(path: Path, wanted: dict[str, Any]) -> Calibration:
    """Read a calibration. Raises `UserError` when it is unreadable or was made for another
    operating point.
    """
    try:
        calibration = Calibration.model_validate(read_table(path))
    except ValidationError as error:
        raise UserError(f"calibration {path}: {validation_line(error)}") from error
    except UserError as error:
        raise UserError(f"calibration {path} cannot be read: {one_line(error)}") from error
    made_for = calibration.operating_point | {
        "rate": calibration.rate,
        "prompts": calibration.prompts,
    }
    if different := [
        f"{key} {made_for.get(key)} and not {value}"
        for key, value in wanted.items()
        if made_for.get(key) != value
    ]:
        raise UserError(
            f"calibration {path} was made for {', '.join(different)}; make it again: bench"
            " calibrate clique_extraction"
        )
    return calibration


def nearest_pair(distances: np.ndarray) -> int:
    """The smallest of the pair distances, int64 `[n, n]`, `n >= 2`."""
    return int(distances[np.triu_indices(len(distances), 1)].min())


def allowed(rate: float, prompts: int) -> int:
    """How many of the prompts may have an edge.

    Raises `UserError` when there are fewer than `1 / rate`.
    """
    count = math.floor(rate * prompts + 1e-9)
    if count < 1:
        raise UserError(
            f"{prompts} calibration prompts cannot show a rate of {rate}; at least"
            f" {math.ceil(1 / rate)} are needed"
        )
    return count


def threshold_below(nearest: list[int], rate: float, elements: int) -> float:
    """The largest multiple of 1 / `STEP` at which at most `floor(rate * n)` of prompts have an
    edge; `nearest`: their squared nearest pairs.

    Raises `UserError` when there are fewer than `1 / rate` prompts, or when even the smallest
    threshold joins too many.
    """
    first_too_many = sorted(nearest)[allowed(rate, len(nearest))]
    steps = min(STEP, math.floor(normalised(first_too_many, elements) * STEP) + 1)
    while steps > 0 and squared_limit(steps / STEP, elements) >= first_too_many:
        steps -= 1
    if steps == 0:
        raise UserError(
            f"more than {rate:.2%} of the calibration prompts give identical pictures; no threshold"
            " keeps to that rate"
        )
    return steps / STEP


def prompts_digest(prompts: list[Prompt]) -> str:
    """sha256 over the texts, in order."""
    return digest_of([prompt.text for prompt in prompts])
