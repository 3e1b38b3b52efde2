"""What a detector would see of some prompts, sampled here and now without a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.contracts.detector import Observation, Recorder
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.running.recording import Recording
from bench.running.sampling import sample
from bench.suite.prompts import Prompt


def observe(
    denoiser: Denoiser,
    prompts: Sequence[str],
    images: int,
    recorders: Sequence[Recorder] = (),
    calibration: Sequence[str] = (),
    pictures: Sequence[list[np.ndarray]] | None = None,
) -> Observation:
    """An observation of `images` images a prompt, sampled only where recorders are given.

    `pictures` has a list of n for each prompt.
    """
    seeds = np.arange(len(prompts) * images, dtype=np.int64).reshape(len(prompts), images)
    traces = _traces(denoiser, prompts, seeds, recorders) if recorders else {}

    def shown(row: int) -> list[np.ndarray]:
        assert pictures is not None, "this observation has no pictures"
        return pictures[row]

    return Observation(
        prompts=tuple(Prompt(f"p{row}", text, "", ()) for row, text in enumerate(prompts)),
        images=images,
        seeds=seeds,
        calibration=tuple(calibration),
        trace_=lambda recorder: traces[recorder],
        pictures_=shown,
        denoiser_=lambda: denoiser,
    )


def _traces(
    denoiser: Denoiser, prompts: Sequence[str], seeds: np.ndarray, recorders: Sequence[Recorder]
) -> dict[Recorder, np.ndarray]:
    places = list(np.ndindex(*seeds.shape))
    kept: dict[Recorder, list[np.ndarray]] = {recorder: [] for recorder in recorders}
    for start in range(0, len(places), denoiser.batch_size):
        part = places[start : start + denoiser.batch_size]
        request = denoiser.request(
            [prompts[row] for row, _ in part], [int(seeds[place]) for place in part]
        )
        recording = Recording(denoiser, request, recorders)
        sample(denoiser, request, Method(), {}, recording)
        for recorder, result in recording.results().items():
            kept[recorder].append(result.numpy())
    arrays = {recorder: np.concatenate(found) for recorder, found in kept.items()}
    return {
        recorder: found.reshape(*seeds.shape, *found.shape[1:])
        for recorder, found in arrays.items()
    }
