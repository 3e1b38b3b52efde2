"""The interface of everything that turns pictures into vectors, and batches of one size for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np


class Extractor(Protocol):
    """Pictures to features:

    `fingerprint` names the model, its weights and the preprocessing, so that features can be
    cached.
    """

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 `[H, W, 3]` pictures to float32 `[n, d]`."""
        ...


def in_whole_batches(extractor: Extractor) -> Callable[[list[np.ndarray]], np.ndarray]:
    """The extractor with its last batch filled up, where it has a `batch_size`: what a picture's
    features are then depends on the picture alone.

    Matrix products round otherwise for other numbers of rows (up to 5e-6 here, for each of the
    testbed's extractors), and how many pictures lie in a shard depends on who made it and what was
    interrupted. The place in a batch of one size changes nothing.
    """
    size = int(getattr(extractor, "batch_size", 1))

    def extract(pictures: list[np.ndarray]) -> np.ndarray:
        return extractor([*pictures, *pictures[-1:] * (-len(pictures) % size)])[: len(pictures)]

    return extract


AnyExtractor = TypeVar("AnyExtractor", bound=Extractor)
