"""What metrics read: the images of one role with their features, and the timing of a method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.features.extractor import Extractor, in_whole_batches

if TYPE_CHECKING:
    from bench.store.store import SampleKey, SampleStore
    from bench.suite.prompts import Prompt


@dataclass(frozen=True)
class SampleSet:
    """The images of one prompt role, as a table with one row a prompt and `images` columns."""

    prompts: tuple[Prompt, ...]
    images: int
    keys: tuple[SampleKey, ...]  # row by row
    store: SampleStore

    def __len__(self) -> int:
        return len(self.keys)

    def features(self, extractor: Extractor) -> np.ndarray:
        """Features `[prompts, images, d]`, extracted once and cached beside the images."""
        values = self.store.features(self.keys, extractor.fingerprint, in_whole_batches(extractor))
        return values.reshape(len(self.prompts), self.images, -1)

    def feature_blocks(self, extractor: Extractor, rows: int = 1024) -> Iterator[np.ndarray]:
        """The same image by image in blocks `[n, d]` of up to `rows`, in the order of the images,
        for sets that are too large to hold at once.
        """
        for start in range(0, len(self.keys), rows):
            yield self.store.features(
                self.keys[start : start + rows], extractor.fingerprint, in_whole_batches(extractor)
            )

    def evaluations(self) -> np.ndarray:
        """Evaluations of the model that each image took, `[prompts, images]`, as its share of its
        batch; NaN where that was not kept.
        """
        spent = np.array(self.store.evaluations(self.keys), dtype=np.float64)
        return spent.reshape(len(self.prompts), self.images)

    def pictures(self) -> list[np.ndarray]:
        return self.store.pictures(self.keys)

    def pictures_of(self, row: int) -> list[np.ndarray]:
        """The pictures of one prompt, for sets that are too large to hold at once."""
        return self.store.pictures(self.keys[row * self.images : (row + 1) * self.images])


@dataclass(frozen=True)
class Timing:
    """Seconds and row evaluations of the method and of `none`, measured in turn on the same
    batches.
    """

    method_seconds: tuple[float, ...]
    none_seconds: tuple[float, ...]
    images: int
    method_rows: int
    none_rows: int
