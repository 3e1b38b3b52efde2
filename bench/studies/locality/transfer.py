"""The functional test of locality: take away the weights that belong to one trigger, and see
whether another trigger of the same picture still brings it back.

Were the picture stored in one place, every trigger of it would lead there, and pruning by any of
them would stop all. Pruning by what has nothing to do with the picture shows how much of that is
mere damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench.base.pictures import read_picture
from bench.contracts.held import Arrays, Held, Known
from bench.features.networks import CopyDescriptor
from bench.statistics.intervals import difference_of_shares
from bench.studies.locality.kept import Kept, name_of
from bench.studies.locality.populations import Member
from bench.studies.locality.weights import Finder, Masks


@dataclass(frozen=True)
class Judge:
    """Says which generations are copies, as the suite's metric sscd does."""

    descriptor: CopyDescriptor
    threshold: float

    def similarity(
        self, held: Held, known: Known, embeddings: np.ndarray, images: int
    ) -> np.ndarray:
        """Cosines of `images` generations of each embedding `[S, T, D]` and the known picture, `[S,
        images]`. All embeddings start from the same noises, those of the caption's images.
        """
        plain = held.request([known] * len(embeddings), images)
        rows = torch.from_numpy(embeddings).repeat_interleave(images, 0)
        pictures = held.drawn(held.handing_in(plain, rows))
        own = self.descriptor([read_picture(known.picture)])[0]
        found: np.ndarray = self.descriptor(list(pictures)) @ own
        return found.reshape(len(embeddings), images)


def copied(
    kept: Kept,
    judge: Judge,
    held: Held,
    jobs: Sequence[tuple[Known, Member]],
    images: int,
    pruned: str = "",
) -> np.ndarray:
    """The share of copies of each picture among generations with its member's embedding, `[R]`;
    `pruned` names what the model lacks meanwhile.
    """

    def make(place: int) -> Arrays:
        known, member = jobs[place]
        found = judge.similarity(held, known, member.embedding[None], images)
        return {"similarity": found[0]}

    names = [
        name_of(known.prompt.text, list(known.seeds[:images]), member.embedding, pruned)
        for known, member in jobs
    ]
    found = kept.found("generate triggers", names, make)
    return np.array([(arrays["similarity"] > judge.threshold).mean() for arrays in found])


def transfer_matrix(
    kept: Kept,
    judge: Judge,
    held: Held,
    finder: Finder,
    known: Known,
    pruned: Sequence[Masks],
    triggers: Sequence[Member],
    images: int,
    what: str,
) -> np.ndarray:
    """M[r, s]: the share of copies of the picture among generations with trigger s, on the model
    without the weights `pruned[r]`.
    """
    embeddings = np.stack([trigger.embedding for trigger in triggers])

    def make(place: int) -> Arrays:
        with finder.removed(held.denoiser, pruned[place]):
            return {"similarity": judge.similarity(held, known, embeddings, images)}

    seeds = list(known.seeds[:images])
    names = [name_of(known.prompt.text, seeds, embeddings, masks) for masks in pruned]
    rows = kept.found(what, names, make)
    return np.stack([(row["similarity"] > judge.threshold).mean(1) for row in rows])


@dataclass(frozen=True)
class Compared:
    """A difference of shares with its 95 % interval over triggers."""

    value: float
    low: float
    high: float


def own_and_others(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the triggers `[T]` of a square matrix: the share after pruning by the trigger itself, and
    the mean share after pruning by another one.
    """
    own = matrix.diagonal().copy()
    return own, (matrix.sum(0) - own) / (len(matrix) - 1)


def compared(one: np.ndarray, other: np.ndarray) -> Compared:
    """The mean of `one - other`, shares of the same triggers `[T]`."""
    low, high = difference_of_shares(one - other)
    value = float((one - other).mean())
    return Compared(value, min(low, value), max(high, value))
