"""The interface of everything that turns pictures into vectors, and batches of one size for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np


class Extractor(Protocol):
    """A function from pictures to features.

    Its `fingerprint` names the model, its weights and the preprocessing, so that features can be
    cached. One that works in batches has a `batch_size`.
    """

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 `[H, W, 3]` pictures to float32 `[n, d]`."""
        ...


AnyExtractor = TypeVar("AnyExtractor", bound=Extractor)


def in_whole_batches(extractor: Extractor) -> Callable[[list[np.ndarray]], np.ndarray]:
    """The extractor with its last batch filled up by copies of the last picture, so that the
    features of a picture depend on nothing but the picture. Without a `batch_size` it is called as
    it is.

    Matrix products round differently for another number of rows (up to 5e-6 for each of the
    testbed's extractors), and how many pictures lie in a shard depends on who made it and on what
    was interrupted. Where a picture stands in a batch of one size changes nothing.
    """
    size = int(getattr(extractor, "batch_size", 1))

    def extract(pictures: list[np.ndarray]) -> np.ndarray:
        return extractor([*pictures, *pictures[-1:] * (-len(pictures) % size)])[: len(pictures)]

    return extract
