"""What a method costs in time: batches sampled with it and without any, in turn, on the machine at
hand; kept in the store.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

import torch

from bench.base.digests import digest_of
from bench.base.distribution import package_version
from bench.base.progress import Report, silent
from bench.contracts.method import Method, State
from bench.contracts.samples import SampleSet, Timing
from bench.diffusion.execution import Execution
from bench.records.environment import device_name
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.generating import make_batch
from bench.running.images import Images
from bench.store.notes import read_note, write_note
from bench.store.store import SampleKey, SampleStore
from bench.suite.schema import Role


def time_against_none(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    state: State,
    role: Role,
    rounds: int,
    images_per_round: int,
    report: Report = silent,
) -> Timing:
    """Sample batches of the prompts of a role with the method and without any, in turn, after one
    round that does not count.

    Timings of the same batches on the same machine are read from the store.
    """
    batches = _batches(images.samples(role), rounds, images_per_round)
    files = images.store.files
    name = timing_file(engine.device, engine.execution, engine.batch_size, batches)
    if known := read_note(files, name):
        return _timing(known)
    taken: dict[bool, list[float]] = {True: [], False: []}
    spent = {True: 0, False: 0}
    # A whole round comes before those that count: kernels are chosen, memory is taken and programs
    # are compiled for a size, and whoever comes first would pay for it.
    for number, batch in enumerate([batches[0], *batches]):
        for mitigated in (False, True) if number % 2 else (True, False):
            method = experiment.method if mitigated else Method()
            seconds, used = timed(engine, batch, method, state)
            if number:
                taken[mitigated].append(seconds)
                spent[mitigated] += used
        report("time against none", number, rounds)
    timing = Timing(
        tuple(taken[True]), tuple(taken[False]), sum(map(len, batches)), spent[True], spent[False]
    )
    write_note(files, name, asdict(timing))
    return timing


def _batches(samples: SampleSet, rounds: int, images: int) -> list[list[SampleKey]]:
    """One batch a round, of all images of prompts that are evenly spread over the list.

    What a method costs may depend on the prompt. A short list is gone through more than once.
    """
    count = max(1, images // samples.images)
    wanted, there = rounds * count, len(samples.prompts)
    rows = [number * there // wanted for number in range(wanted)]
    return [
        [
            key
            for row in rows[first::rounds]
            for key in samples.keys[row * samples.images :][: samples.images]
        ]
        for first in range(rounds)
    ]


def timed(
    engine: Engine, batch: Sequence[SampleKey], method: Method, state: State
) -> tuple[float, int]:
    """Seconds and row evaluations of one batch."""
    denoiser = engine.denoiser
    # A run attaches once, so attaching is no part of an image's time.
    with method.attach(denoiser.pipe, state):
        wait_for(engine.device)
        before, start = denoiser.evaluations, time.perf_counter()
        for first in range(0, len(batch), engine.batch_size):
            make_batch(denoiser, batch[first : first + engine.batch_size], method, state)
        wait_for(engine.device)
        return time.perf_counter() - start, denoiser.evaluations - before


def wait_for(device: torch.device) -> None:
    """Let a GPU finish before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timings(store: SampleStore, device: torch.device, execution: Execution) -> list[Timing]:
    """Timings of the store's method on this kind of machine that the store holds."""
    pattern = timing_file(device, execution, None)
    there = [name for name in store.files.names() if fnmatchcase(name, pattern)]
    return [_timing(known) for name in there if (known := read_note(store.files, name))]


def timing_file(
    device: torch.device,
    execution: Execution,
    batch_size: int | None,
    batches: Sequence[Sequence[SampleKey]] | None = None,
) -> str:
    """The file of a store that keeps the timing of these batches, sampled so many images at a time,
    on this machine.

    Without batches it is a pattern for all that were timed here.
    """
    versions = [torch.__version__, package_version("diffusers")]
    machine = digest_of(
        [device_name(device), torch.get_num_threads(), versions, execution.changed]
    )[:12]
    which = (
        "*"
        if batches is None
        else digest_of([[[key.prompt, key.seed] for key in batch] for batch in batches])[:12]
    )
    return f"timing-{machine}-{'*' if batches is None else batch_size}-{which}.json"


def _timing(known: dict[str, Any]) -> Timing:
    return Timing(
        tuple(known["method_seconds"]),
        tuple(known["none_seconds"]),
        known["images"],
        known["method_rows"],
        known["none_rows"],
    )
