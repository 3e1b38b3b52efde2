"""The images of an observation in batches, for detectors that evaluate the model without
derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench import Observation, Request

Places = list[tuple[int, int]]  # of images: the prompt's row and the seed's column


def in_batches(seen: Observation, name: str) -> Iterator[tuple[Places, Request]]:
    """Every image once, prompt by prompt, and the request for each batch; progress bears `name`."""
    denoiser = seen.denoiser
    places: Places = list(np.ndindex(*seen.seeds.shape))
    for start in range(0, len(places), denoiser.batch_size):
        part = places[start : start + denoiser.batch_size]
        texts = [seen.prompts[row].text for row, _ in part]
        yield part, denoiser.request(texts, [int(seen.seeds[place]) for place in part])
        seen.report(name, start + len(part), len(places))
