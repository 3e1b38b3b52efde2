"""Captions that are near-duplicates of each other, and what hangs together by them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

NEAR = 0.5  # share of words that two captions have in common (Jaccard), from which they are near
LARGEST = 20_000  # captions, beyond which words are not compared


def near_pairs(captions: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, of captions whose sets of words have a Jaccard index of at least
    `NEAR`; none where there are more than `LARGEST` captions.
    """
    if len(captions) > LARGEST:
        return set()
    return _near([set(re.findall(r"\w+", caption.lower())) for caption in captions])


def components(count: int, pairs: Collection[tuple[int, int]]) -> np.ndarray:
    """By number, int `[count]`, the label of the group that it belongs to, directly or through
    others. Labels grow in the order of each group's first member.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, first, places = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places]


def _near(words: list[set[str]]) -> set[tuple[int, int]]:
    """Pairs of sets of words whose Jaccard index is at least `NEAR`."""
    from scipy.sparse import csr_matrix

    known: dict[str, int] = {}
    places = [[known.setdefault(word, len(known)) for word in sorted(one)] for one in words]
    starts = np.cumsum([0, *map(len, places)])
    flat = [place for one in places for place in one]
    table = csr_matrix((np.ones(len(flat)), flat, starts), shape=(len(words), max(len(known), 1)))
    shared = (table @ table.T).tocoo()
    sizes = np.diff(starts)
    upper = shared.row < shared.col
    rows, columns, both = shared.row[upper], shared.col[upper], shared.data[upper]
    near = both / (sizes[rows] + sizes[columns] - both) >= NEAR
    return set(zip(rows[near].tolist(), columns[near].tolist(), strict=True))
