"""Making images in this process, unit by unit; each is stored as one shard.

What the units are stands in `bench.running.demand`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.contracts.method import Method, State
from bench.diffusion.execution import at_chosen_precision
from bench.running import images as keeping
from bench.running.demand import Unit, to_sample
from bench.running.sample import sample
from bench.store.store import SampleKey

if TYPE_CHECKING:
    from bench.running.run import Run


@at_chosen_precision
def generate(
    run: Run, state: State, units: Sequence[Unit], pictures: Set[SampleKey] = frozenset()
) -> None:
    """Make those images of the units that the store does not hold.

    `pictures`: those that will be read, so that they may not have been dropped.
    """
    lacking = set(keeping.missing(run, (key for unit in units for key in unit), pictures))
    waiting = [
        keys
        for unit in units
        if (keys := to_sample(unit, lacking, run.work.batch, run.method.mixes_images()))
    ]
    if not waiting:
        return
    done, total = 0, sum(map(len, waiting))
    run.report("generate", 0, total)
    with run.method.attach(run.denoiser.pipe, state):
        for keys in waiting:

            def made(images: int, before: int = done) -> None:
                run.report("generate", before + images, total)

            make_unit(run, state, keys, made, pictures)
            done += len(keys)


def make_unit(
    run: Run,
    state: State,
    keys: Sequence[SampleKey],
    made: Callable[[int], None],
    read: Set[SampleKey] = frozenset(),
) -> None:
    """Sample one unit with the method attached already and store it; `made` hears after every batch
    how many images are there.

    It is stored with the features that metrics will ask for; pictures that nothing reads any more
    may be dropped, but for those to be `read` now.
    """
    pictures: list[np.ndarray] = []
    facts: list[dict[str, float]] = []
    try:
        while len(pictures) < len(keys):
            try:
                new, reported = make_batch(
                    run, keys[len(pictures) : len(pictures) + run.batch_size], run.method, state
                )
            except torch.OutOfMemoryError as error:
                run.halve_batch(error)
                continue
            pictures, facts = pictures + list(new), facts + reported
            made(len(pictures))
    except BaseException:  # what was finished before a batch failed or Ctrl-C
        if pictures:
            run.store.append(keys[: len(pictures)], pictures, facts)
        raise
    keeping.store_unit(run, keys, pictures, facts, read)


def make_batch(
    run: Run, keys: Sequence[SampleKey], method: Method, state: State
) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Pictures uint8 `[B, H, W, 3]` of one batch, and what the method reported of each."""
    request = run.denoiser.request([key.prompt for key in keys], [key.seed for key in keys])
    pictures = run.denoiser.decode(sample(run.denoiser, request, method, state))
    return pictures, [
        {name: values[row] for name, values in request.facts.items()} for row in range(len(keys))
    ]
