"""Nearest training pictures by squared distance, exactly as comparing everything with everything
would find them, in one pass over the set.

Pictures are first compared by the sums S of their b x b pixel blocks: the distance of two pictures
is at least sum((S_a - S_b)^2) / b^2 (Cauchy-Schwarz, a block at a time). What that bound does not
rule out is compared pixel by pixel, in integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import faiss
import numpy as np

from attacks._exact import squared_distances
from bench import UserError

if TYPE_CHECKING:
    from attacks._training_set import TrainingSet

BLOCKS = 8  # a side of a picture; more for large ones, so that no block is wider than WIDEST
WIDEST = 64  # pixels: sums of a block, and differences of two, are then integers that float32 holds
QUERIES = 4096  # compared with a batch at a time: bounds the tables of pairs
FAR = np.iinfo(np.int64).max
SINGLE, DOUBLE = 2.0**-24, 2.0**-53  # unit roundoffs

Report = Callable[[int], None]


@dataclass(frozen=True)
class Matches:
    """Of every query, what the training set holds within a limit."""

    # id of the nearest training picture within the limit, the first of equally near ones
    nearest: list[str | None]
    squared: np.ndarray  # its squared distance, int64 [q]; -1 where there is none
    # training pictures within the limit, int64 [q]: the k of eidetic memorization
    count: np.ndarray
    scanned: int  # training pictures
    candidates: int  # pairs that the bound did not rule out


@dataclass(frozen=True)
class Neighbours:
    """Of every query, its k nearest training pictures, nearest first; of equally near ones those
    that come first in the set.
    """

    positions: np.ndarray  # in the training set, int64 [q, k]; -1 where the set has fewer than k
    squared: np.ndarray  # squared distances, int64 [q, k]; FAR where the set has fewer than k
    ids: list[str]  # of the nearest
    closest: np.ndarray  # the nearest themselves, uint8 [q, S, S, 3]
    scanned: int  # training pictures
    candidates: int  # pairs that the bound did not rule out


def within(
    queries: np.ndarray, training: TrainingSet, limit: int, report: Report | None = None
) -> Matches:
    """Training pictures whose sum of squared differences to a query, uint8 `[q, S, S, 3]`, is at
    most `limit`.

    `report` is told after every batch how many training pictures have been read.
    """
    sums, block = _block_sums(_checked(queries, training))
    parts = [
        _Within(queries[start : start + QUERIES], sums[start : start + QUERIES], block, limit)
        for start in range(0, len(queries), QUERIES)
    ]
    scanned = _scan(parts, training, report)
    return Matches(
        nearest=[id_ for part in parts for id_ in part.ids],
        squared=np.concatenate([part.best for part in parts]),
        count=np.concatenate([part.counts for part in parts]),
        scanned=scanned,
        candidates=sum(part.candidates for part in parts),
    )


def nearest(
    queries: np.ndarray, training: TrainingSet, k: int, report: Report | None = None
) -> Neighbours:
    """The `k` training pictures with the smallest sums of squared differences to each query, uint8
    `[q, S, S, 3]`.
    """
    if k < 1:
        raise UserError(f"the number of nearest training pictures must be at least 1, not {k}")
    sums, block = _block_sums(_checked(queries, training))
    parts = [
        _Nearest(queries[start : start + QUERIES], sums[start : start + QUERIES], block, k)
        for start in range(0, len(queries), QUERIES)
    ]
    scanned = _scan(parts, training, report)
    return Neighbours(
        positions=np.concatenate([part.positions for part in parts]),
        squared=np.concatenate([part.squared for part in parts]),
        ids=[id_ for part in parts for id_ in part.ids],
        closest=np.concatenate([part.closest for part in parts]).reshape(queries.shape),
        scanned=scanned,
        candidates=sum(part.candidates for part in parts),
    )


class _Search(Protocol):
    def look(self, ids: list[str], pictures: np.ndarray, sums: np.ndarray, first: int) -> None: ...


def _scan(parts: Sequence[_Search], training: TrainingSet, report: Report | None) -> int:
    first = 0
    for ids, pictures in training:
        sums, _ = _block_sums(pictures)
        for part in parts:
            part.look(ids, pictures.reshape(len(pictures), -1), sums, first)
        first += len(pictures)
        if report:
            report(first)
    return first


class _Within:
    """A search within a limit: the bound by FAISS, whose range search gives a superset of the pairs
    once rounding is allowed for.
    """

    def __init__(self, queries: np.ndarray, sums: np.ndarray, block: int, limit: int) -> None:
        self.queries = queries.reshape(len(queries), -1)
        # between two values that a sum of squares can have
        self.limit, self.radius = limit, block * block * limit + 0.5
        self.centre = np.rint(sums.mean(0))
        sums = sums - self.centre
        self.longest = _longest(sums)
        self.index = faiss.IndexFlatL2(sums.shape[1])
        self.index.add(sums)
        self.ids: list[str | None] = [None] * len(queries)
        self.best = np.full(len(queries), -1, dtype=np.int64)
        self.counts = np.zeros(len(queries), dtype=np.int64)
        self.candidates = 0

    def look(self, ids: list[str], pictures: np.ndarray, sums: np.ndarray, first: int) -> None:
        sums = sums - self.centre
        error = rounding(sums.shape[1], max(self.longest, _longest(sums)), SINGLE)
        # Range search keeps what is strictly below the radius, a float32, so the radius must not be
        # rounded down.
        starts, _, rows = self.index.range_search(
            sums, float(np.nextafter(np.float32(self.radius + error), np.float32(np.inf)))
        )
        columns = np.repeat(np.arange(len(sums)), (starts[1:] - starts[:-1]).astype(np.int64))
        self.candidates += len(rows)
        distances = distances_of_pairs(self.queries, pictures, rows, columns)
        near = distances <= self.limit
        self.counts += np.bincount(rows[near], minlength=len(self.counts))
        # of equally near ones the earlier batch stays
        better = near & ((self.best[rows] < 0) | (distances < self.best[rows]))
        rows, columns, distances = rows[better], columns[better], distances[better]
        order = np.lexsort((columns, distances, rows))
        # the best of this batch of each query
        for pair in order[np.unique(rows[order], return_index=True)[1]]:
            self.best[rows[pair]], self.ids[rows[pair]] = distances[pair], ids[columns[pair]]


class _Nearest:
    """A search for the k nearest: a picture is compared with a query while the bound is below the
    query's k-th best distance so far.
    """

    def __init__(self, queries: np.ndarray, sums: np.ndarray, block: int, k: int) -> None:
        self.queries = queries.reshape(len(queries), -1)
        self.scale = float(block * block)
        self.centre = np.rint(sums.mean(0))
        self.sums = (sums - self.centre).astype(np.float64)
        self.norms = _norms(self.sums)
        self.k = k
        self.squared = np.full((len(queries), k), FAR, dtype=np.int64)
        self.positions = np.full((len(queries), k), -1, dtype=np.int64)
        self.ids = [""] * len(queries)
        self.closest = np.zeros_like(self.queries)
        self.candidates = 0

    def look(self, ids: list[str], pictures: np.ndarray, sums: np.ndarray, first: int) -> None:
        sums = (sums - self.centre).astype(np.float64)
        norms = _norms(sums)
        error = rounding(sums.shape[1], max(self.norms.max(), norms.max()), DOUBLE)
        bounds = self.sums @ sums.T
        bounds *= -2
        bounds += norms
        # A picture as far away as the k-th best comes later in the set, and loses the tie.
        rows, columns = np.nonzero(
            bounds < (self.scale * self.squared[:, -1] - self.norms + error)[:, None]
        )
        self.candidates += len(rows)
        distances = distances_of_pairs(self.queries, pictures, rows, columns)
        better = distances < self.squared[rows, -1]
        if better.any():
            self._merge(rows[better], distances[better], columns[better] + first)
            for query in np.flatnonzero(self.positions[:, 0] >= first):
                self.closest[query] = pictures[self.positions[query, 0] - first]
                self.ids[query] = ids[self.positions[query, 0] - first]

    def _merge(self, rows: np.ndarray, distances: np.ndarray, positions: np.ndarray) -> None:
        changed = np.unique(rows)
        rows = np.concatenate([np.repeat(changed, self.k), rows])
        distances = np.concatenate([self.squared[changed].ravel(), distances])
        positions = np.concatenate([self.positions[changed].ravel(), positions])
        order = np.lexsort((positions, distances, rows))
        starts = np.searchsorted(rows[order], changed)
        best = order[(starts[:, None] + np.arange(self.k)).ravel()]
        self.squared[changed] = distances[best].reshape(-1, self.k)
        self.positions[changed] = positions[best].reshape(-1, self.k)


def distances_of_pairs(
    queries: np.ndarray, pictures: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Squared distances of `queries[rows[i]]` and `pictures[columns[i]]`, uint8 `[n, d]` each:
    int64 `[i]`, exact.

    Pair by pair where few pairs are asked for, else from a table of the queries and pictures
    concerned.
    """
    used_rows, used_columns = (
        np.bincount(used, minlength=count) > 0
        for used, count in ((rows, len(queries)), (columns, len(pictures)))
    )
    if len(rows) > worth_a_table(int(used_rows.sum()), int(used_columns.sum())):
        table = squared_distances(queries[used_rows], pictures[used_columns])
        return np.asarray(
            table[(np.cumsum(used_rows) - 1)[rows], (np.cumsum(used_columns) - 1)[columns]]
        )
    distances = np.empty(len(rows), dtype=np.int64)
    for pair, (row, column) in enumerate(zip(rows, columns, strict=True)):
        difference = queries[row].astype(np.int32) - pictures[column]
        distances[pair] = np.square(difference, out=difference).sum(dtype=np.int64)
    return distances


def worth_a_table(rows: int, columns: int) -> int:
    """How many pairs compared alone take as long as a table: measured, a call is 40 pairs, a
    picture read one, and 256 products one.
    """
    return 40 + rows + columns + rows * columns // 256


def _block_sums(pictures: np.ndarray) -> tuple[np.ndarray, int]:
    """Sums of b x b blocks of uint8 pictures `[n, S, S, 3]`: float32 `[n, d]` that are integers,
    and b.
    """
    count, side = pictures.shape[:2]
    block = min(WIDEST, -(-side // BLOCKS))
    blocks = -(-side // block)
    padding = blocks * block - side
    if padding:  # with zeros, which differ from nobody's
        pictures = np.pad(pictures, ((0, 0), (0, padding), (0, padding), (0, 0)))
    strips = pictures.reshape(count, blocks, block, -1).sum(2, dtype=np.uint16)
    # Along a strip by a product with ones and zeros: every partial sum is an integer below 2^24, so
    # float32 adds without loss.
    ones = np.kron(np.kron(np.eye(blocks), np.ones((block, 1))), np.eye(3)).astype(np.float32)
    return (strips.reshape(count * blocks, -1).astype(np.float32) @ ones).reshape(count, -1), block


def rounding(d: int, longest: float, unit: float) -> float:
    """By how much |x|^2 + |y|^2 - 2xy may be off in floating point, for x and y of `d` numbers and
    squared length `longest` at most.

    The numbers themselves are exact. `gamma` bounds the relative error of a sum of d products, in
    any order: four of those, and adding the three terms takes six roundings of `longest`; the rest
    is for comparing, and for the rounding of `longest` and of this line.
    """
    gamma = d * unit / (1 - d * unit)
    return (4 * gamma + 16 * unit) * longest


def _norms(sums: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", sums, sums))


def _longest(sums: np.ndarray) -> float:
    return float(_norms(sums.astype(np.float64)).max())


def _checked(queries: np.ndarray, training: TrainingSet) -> np.ndarray:
    expected = (training.side, training.side, 3)
    if queries.dtype != np.uint8 or queries.shape[1:] != expected or not len(queries):
        raise UserError(
            f"pictures to look up must be uint8 [n, {', '.join(map(str, expected))}], at least one,"
            f" not {queries.dtype} {list(queries.shape)}"
        )
    return queries
