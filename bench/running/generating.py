"""Making images in this process, unit by unit; each is stored as one shard.

What the units are stands in `bench.running.units`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch

from bench.base.progress import Report, silent
from bench.contracts.detector import Recorder
from bench.contracts.method import Method, State
from bench.diffusion.denoiser import Denoiser
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.images import Images
from bench.running.recorded import Recorded
from bench.running.recording import Recording
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
    recorded: Recorded | None = None,
) -> None:
    """Make those images of the units that the store does not hold.

    Images in `read` will be read as pictures, so theirs may not have been dropped. With `recorded`,
    images are made again whose sampling it wants and does not have; without it, what the ordinary
    run records is recorded of images that are made anyway.
    """
    method = experiment.method
    lacking = set(images.lacking((key for unit in units for key in unit), read))
    if recorded:
        lacking.update(recorded.lacking(key for unit in units for key in unit))
    watching = recorded or images.recorded
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

            sampled = _sampled(engine, images, method, state, keys, made, watching)
            # First the arrays: a picture that is there is not made again for them in a run.
            watching.keep(keys, sampled.kept)
            images.keep_unit(
                keys, sampled.pictures, sampled.facts, sampled.evaluations, read, report
            )
            done += len(keys)


@dataclass
class Sampled:
    """Pictures uint8 `[H, W, 3]`, what the method reported of each, and the evaluations of the
    model that each took: its share of those of its batch. `kept` has an array of each picture by
    recorder.
    """

    pictures: list[np.ndarray] = field(default_factory=list)
    facts: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, other: Sampled) -> None:
        self.pictures += other.pictures
        self.facts += other.facts
        self.evaluations += other.evaluations
        for name, values in other.kept.items():
            self.kept.setdefault(name, []).extend(values)


def _sampled(
    engine: Engine,
    images: Images,
    method: Method,
    state: State,
    keys: Sequence[SampleKey],
    made: Callable[[int], None],
    watching: Recorded,
) -> Sampled:
    """The pictures of one unit, batch by batch, with the method attached already.

    `made` hears after every batch how many images there are. What was finished before a batch
    failed, or before Ctrl-C, is stored.
    """
    whole = Sampled()
    recorders = watching.recorders if watching.wanted.intersection(keys) else {}
    try:
        while len(whole.pictures) < len(keys):
            start = len(whole.pictures)
            batch = keys[start : start + engine.batch_size]
            try:
                whole.add(make_batch(engine.denoiser, batch, method, state, recorders))
            except torch.OutOfMemoryError as error:
                engine.halve_batch(error)
                continue
            made(len(whole.pictures))
    except BaseException:
        if whole.pictures:
            there = keys[: len(whole.pictures)]
            watching.keep(there, whole.kept)
            images.store.append(
                there,
                whole.pictures,
                whole.facts,
                evaluations=whole.evaluations,
                made_by=engine.made_by,
            )
        raise
    return whole


def make_batch(
    denoiser: Denoiser,
    keys: Sequence[SampleKey],
    method: Method,
    state: State,
    recorders: Mapping[str, Recorder] = MappingProxyType({}),
) -> Sampled:
    """One batch, watched by recorders, which have names."""
    before = denoiser.evaluations
    request = denoiser.request([key.prompt for key in keys], [key.seed for key in keys])
    recording = Recording(denoiser, request, list(recorders.values())) if recorders else None
    pictures = denoiser.decode(sample(denoiser, request, method, state, recording))
    results = recording.results() if recording else {}
    kept = {name: list(results[recorder].numpy()) for name, recorder in recorders.items()}
    facts = [
        {name: values[row] for name, values in request.facts.items()} for row in range(len(keys))
    ]
    each = (denoiser.evaluations - before) / len(keys)
    return Sampled(list(pictures), facts, [each] * len(keys), kept)
