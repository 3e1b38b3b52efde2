"""Making the images that the store does not hold yet: cut into units, each of which is made and stored as one shard.

A unit is what is lost when a process dies, and what one worker makes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench import keeping
from bench.method import Method, State
from bench.sampler import sample
from bench.store import SampleKey

if TYPE_CHECKING:
    from bench.runner import Run

IMAGES_PER_SHARD = 64


def generate(run: Run, state: State, keys: Sequence[SampleKey], pictures: bool = False) -> None:
    """Make those images that the store does not hold, unit by unit. `pictures`: all of them will be read, so none may have been dropped."""
    missing = keeping.missing(run, keys, pictures)
    if not missing:
        return
    done = 0
    run.report("generate", 0, len(missing))
    with run.method.attach(run.denoiser.pipe, state):
        for unit in units(missing, run.suite.settings.model.batch_size):

            def made(images: int, before: int = done) -> None:
                run.report("generate", before + images, len(missing))

            make_unit(run, state, unit, made, pictures)
            done += len(unit)


def units(keys: Sequence[SampleKey], batch: int) -> list[Sequence[SampleKey]]:
    """Keys in whole batches, as many as make about `IMAGES_PER_SHARD` images."""
    shard = max(IMAGES_PER_SHARD // batch, 1) * batch
    return [keys[start : start + shard] for start in range(0, len(keys), shard)]


def make_unit(run: Run, state: State, keys: Sequence[SampleKey], made: Callable[[int], None], read: bool = False) -> None:
    """Sample one unit with the method attached already and store it; `made` hears after every batch how many images are there.

    It is stored with the features that metrics will ask for; pictures that nothing reads any more may be dropped, unless all of them are to be `read`.
    """
    batch = run.suite.settings.model.batch_size
    pictures: list[np.ndarray] = []
    facts: list[dict[str, float]] = []
    try:
        for first in range(0, len(keys), batch):
            new, reported = make_batch(run, keys[first : first + batch], run.method, state)
            pictures, facts = pictures + list(new), facts + reported
            made(len(pictures))
    except BaseException:  # what was finished before a batch failed or Ctrl-C
        if pictures:
            run.store.append(keys[: len(pictures)], pictures, facts)
        raise
    keeping.store_unit(run, keys, pictures, facts, read)


def make_batch(run: Run, keys: Sequence[SampleKey], method: Method, state: State) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Pictures uint8 `[B, H, W, 3]` of one batch, and what the method reported of each."""
    request = run.denoiser.request([key.prompt for key in keys], [key.seed for key in keys])
    pictures = run.denoiser.decode(sample(run.denoiser, request, method, state))
    return pictures, [{name: values[row] for name, values in request.facts.items()} for row in range(len(keys))]
