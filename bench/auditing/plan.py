"""What an audit would make, before it makes it."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from bench.auditing.ready import Audit
from bench.auditing.rows import compared, remedy_columns
from bench.auditing.sampling import Column, Generated
from bench.auditing.suites import FEW
from bench.base.pictures import PNG_BYTES_PER_PIXEL
from bench.diffusion.denoiser import Denoiser
from bench.running.plan import searches_planned


def plan(audit: Audit, denoiser: Denoiser | None = None) -> dict[str, Any]:
    """What would be made, in numbers, without making it; with a loaded model also how long that
    takes at the pace of one evaluation just now. What methods fit and evaluate on top is not in it.
    """
    studio = audit.studio
    steps = audit.suite.settings.model.steps
    columns: list[tuple[Column, Generated]] = []
    yours = studio.planned(audit.yours, [*audit.askings, *audit.held_out_askings])
    columns.append((audit.yours, yours))
    if audit.base:
        columns.append((audit.base, studio.planned(audit.base, audit.base_askings)))
    few = compared(audit.askings)
    compared_with = [one for one, _, _ in audit.settings()]
    if audit.base_with_embeddings:
        compared_with.insert(0, audit.base_with_embeddings)
    for column in [*compared_with, *remedy_columns(audit)]:
        columns.append((column, studio.planned(column, few, FEW)))
    images = {
        column.name: sum(len(set(part.keys)) for part in generated.parts)
        for column, generated in columns
    }
    missing, pixels = 0, 0
    for part in (part for _, generated in columns for part in generated.parts):
        missing += len(part.lacking)
        pixels += len(part.lacking) * math.prod(part.prepared.experiment.suite.settings.model.sides)
    attacked = 0
    if audit.attack:
        experiment = studio.prepared(audit.attack).experiment
        attacked = sum(one["row_evaluations"] for one in searches_planned(experiment).values())
    rows = 2 * steps * missing + attacked
    return {
        "pictures": len(audit.training),
        "held_out": len(audit.holdout) if audit.holdout else 0,
        "prompts": len(audit.askings),
        "images": images,
        "images_missing": missing,
        "row_evaluations": rows,
        "row_evaluations_of_the_attack": attacked,
        "seconds_estimated": None if denoiser is None else round(rows * pace(denoiser), 1),
        "disk_mib": round(pixels * PNG_BYTES_PER_PIXEL / 2**20, 1),
        "notes": list(audit.notes),
        "out": str(audit.asked.out),
    }


def pace(denoiser: Denoiser) -> float:
    """Seconds that one row takes through the UNet, in a batch as it is sampled; measured once,
    after one that warms up.
    """
    count = denoiser.batch_size
    request = denoiser.request([""] * count, range(count))
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with torch.no_grad():
            found = denoiser.epsilon(
                request.latents, denoiser.timesteps[0], request.embeddings, None, 0, request.added
            )
        float(found.flatten()[0])  # waits for a GPU
        seconds = time.perf_counter() - began
    return seconds / count
