"""What a method costs in time: batches sampled with it and without any, in turn, on the machine at
hand; kept in the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from bench.base.digests import digest_of
from bench.contracts.method import Method, State
from bench.contracts.samples import Timing
from bench.records.environment import device_name
from bench.running.generating import make_batch
from bench.store.store import SampleKey

if TYPE_CHECKING:
    from bench.running.run import Run


def time_against_none(run: Run, state: State, rounds: int, images: int) -> Timing:
    """Sample batches with the method and without any, in turn, after one round that does not count.

    What a method costs may depend on the prompt, so batches hold all images of prompts that are
    evenly spread over the list.
    """
    samples = run.samples("memorized")
    count = max(1, images // samples.images)
    rows = [i * len(samples.prompts) // (rounds * count) for i in range(rounds * count)]
    batches = [
        [
            key
            for row in rows[r::rounds]
            for key in samples.keys[row * samples.images :][: samples.images]
        ]
        for r in range(rounds)
    ]
    file = timing_file(run, batches)
    if run.store.files.exists(file):
        return _read(run.store.files.read(file))
    taken: dict[bool, list[float]] = {True: [], False: []}
    spent = {True: 0, False: 0}
    # what is compiled is compiled for a size
    first = batches[0] if run.execution.compile else batches[0][:2]
    for number, batch in enumerate([first, *batches]):
        for mitigated in (False, True) if number % 2 else (True, False):
            seconds, used = timed(run, batch, state, mitigated)
            if number:
                taken[mitigated].append(seconds)
                spent[mitigated] += used
        run.report("time against none", number, rounds)
    timing = Timing(
        tuple(taken[True]), tuple(taken[False]), sum(map(len, batches)), spent[True], spent[False]
    )
    run.store.files.write(file, json.dumps(asdict(timing)).encode())
    return timing


def timed(run: Run, batch: Sequence[SampleKey], state: State, mitigated: bool) -> tuple[float, int]:
    """Seconds and row evaluations of one batch."""
    method = run.method if mitigated else Method()
    # a run attaches once, so attaching is no part of an image's time
    with method.attach(run.denoiser.pipe, state):
        wait_for(run.device)
        before, start = run.denoiser.evaluations, time.perf_counter()
        for first in range(0, len(batch), run.batch_size):
            make_batch(run, batch[first : first + run.batch_size], method, state)
        wait_for(run.device)
        return time.perf_counter() - start, run.denoiser.evaluations - before


def wait_for(device: torch.device) -> None:
    """Let a GPU finish before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timings(run: Run) -> list[Timing]:
    """Timings of this method on this kind of machine that the store holds."""
    return [
        _read(run.store.files.read(name))
        for name in run.store.files.names()
        if fnmatchcase(name, timing_file(run))
    ]


def timing_file(run: Run, batches: Sequence[Sequence[SampleKey]] | None = None) -> str:
    """The file of the store that keeps the timing of these batches on this machine; without
    batches, a pattern for all that were timed here.
    """
    executed = [run.execution.changed] if run.execution.changed else []
    machine = digest_of(
        [device_name(run.device), torch.get_num_threads(), torch.__version__, *executed]
    )[:12]
    timed = (
        "*"
        if batches is None
        else digest_of([[[key.prompt, key.seed] for key in batch] for batch in batches])[:12]
    )
    return f"timing-{machine}-{timed}.json"


def _read(content: bytes) -> Timing:
    known = json.loads(content)
    return Timing(
        tuple(known["method_seconds"]),
        tuple(known["none_seconds"]),
        known["images"],
        known["method_rows"],
        known["none_rows"],
    )
