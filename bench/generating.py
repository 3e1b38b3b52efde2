"""Making the images that the store does not hold yet: cut into units, each of which is made and stored as one shard.

A unit is what is lost when a process dies, and what one worker makes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.method import Method, State
from bench.sampler import sample
from bench.store import SampleKey

if TYPE_CHECKING:
    from bench.runner import Run

IMAGES_PER_SHARD = 64


def generate(run: Run, state: State, keys: Sequence[SampleKey]) -> None:
    """Make those images that the store does not hold, unit by unit."""
    missing = run.store.missing(keys)
    if not missing:
        return
    done = 0
    run.report("generate", 0, len(missing))
    with run.method.attach(run.denoiser.pipe, state):
        for unit in units(missing, run.batch_size):

            def made(images: int, before: int = done) -> None:
                run.report("generate", before + images, len(missing))

            make_unit(run, state, unit, made)
            done += len(unit)


def units(keys: Sequence[SampleKey], batch: int) -> list[Sequence[SampleKey]]:
    """Keys in whole batches, as many as make about `IMAGES_PER_SHARD` images."""
    shard = max(IMAGES_PER_SHARD // batch, 1) * batch
    return [keys[start : start + shard] for start in range(0, len(keys), shard)]


def make_unit(run: Run, state: State, keys: Sequence[SampleKey], made: Callable[[int], None]) -> None:
    """Sample one unit with the method attached already and store it; `made` hears after every batch how many images are there."""
    pictures: list[np.ndarray] = []
    facts: list[dict[str, float]] = []
    try:
        while len(pictures) < len(keys):
            try:
                new, reported = make_batch(run, keys[len(pictures) : len(pictures) + run.batch_size], run.method, state)
            except torch.OutOfMemoryError as error:
                run.halve_batch(error)
                continue
            pictures, facts = pictures + list(new), facts + reported
            made(len(pictures))
    finally:  # also what was finished before a batch failed or Ctrl-C
        for first, last in shards(len(pictures)):
            run.store.append(keys[first:last], np.stack(pictures[first:last]), facts[first:last])


def shards(count: int) -> list[tuple[int, int]]:
    """Where images of one unit begin and end in equal shards of about `IMAGES_PER_SHARD`, however large a batch was."""
    parts = max(1, round(count / IMAGES_PER_SHARD)) if count else 0
    return [(part * count // parts, (part + 1) * count // parts) for part in range(parts)]


def make_batch(run: Run, keys: Sequence[SampleKey], method: Method, state: State) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Pictures uint8 `[B, H, W, 3]` of one batch, and what the method reported of each."""
    request = run.denoiser.request([key.prompt for key in keys], [key.seed for key in keys])
    pictures = run.denoiser.decode(sample(run.denoiser, request, method, state))
    return pictures, [{name: values[row] for name, values in request.facts.items()} for row in range(len(keys))]
