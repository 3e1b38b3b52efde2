"""Making images in this process, unit by unit; each is stored as one shard.

What the units are stands in `bench.running.units`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import numpy as np
import torch

from bench.base.progress import Report, silent
from bench.contracts.method import Method, State
from bench.diffusion.denoiser import Denoiser
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.images import Images
from bench.running.sampling import sample
from bench.running.units import Unit, to_sample
from bench.store.store import SampleKey


def generate(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    state: State,
    units: Sequence[Unit],
    read: Set[SampleKey] = frozenset(),
    report: Report = silent,
) -> None:
    """Make those images of the units that the store does not hold.

    Images in `read` will be read as pictures, so theirs may not have been dropped.
    """
    method = experiment.method
    lacking = set(images.lacking((key for unit in units for key in unit), read))
    waiting = [
        keys
        for unit in units
        if (keys := to_sample(unit, lacking, images.units.batch, method.mixes_images()))
    ]
    if not waiting:
        return
    done, total = 0, sum(map(len, waiting))
    report("generate", 0, total)
    with engine.precision(), method.attach(engine.denoiser.pipe, state):
        for keys in waiting:

            def made(count: int, before: int = done) -> None:
                report("generate", before + count, total)

            pictures, facts = _sampled(engine, images, method, state, keys, made)
            images.keep_unit(keys, pictures, facts, read, report)
            done += len(keys)


def _sampled(
    engine: Engine,
    images: Images,
    method: Method,
    state: State,
    keys: Sequence[SampleKey],
    made: Callable[[int], None],
) -> tuple[list[np.ndarray], list[dict[str, float]]]:
    """The pictures of one unit, batch by batch, with the method attached already.

    `made` hears after every batch how many images there are. What was finished before a batch
    failed, or before Ctrl-C, is stored.
    """
    pictures: list[np.ndarray] = []
    facts: list[dict[str, float]] = []
    try:
        while len(pictures) < len(keys):
            batch = keys[len(pictures) : len(pictures) + engine.batch_size]
            try:
                new, reported = make_batch(engine.denoiser, batch, method, state)
            except torch.OutOfMemoryError as error:
                engine.halve_batch(error)
                continue
            pictures, facts = pictures + list(new), facts + reported
            made(len(pictures))
    except BaseException:
        if pictures:
            images.store.append(keys[: len(pictures)], pictures, facts)
        raise
    return pictures, facts


def make_batch(
    denoiser: Denoiser, keys: Sequence[SampleKey], method: Method, state: State
) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Pictures uint8 `[B, H, W, 3]` of one batch, and what the method reported of each."""
    request = denoiser.request([key.prompt for key in keys], [key.seed for key in keys])
    pictures = denoiser.decode(sample(denoiser, request, method, state))
    return pictures, [
        {name: values[row] for name, values in request.facts.items()} for row in range(len(keys))
    ]
