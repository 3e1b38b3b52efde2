"""What the clique attack finds out of one prompt's generations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from attacks._cliques import has_clique, maximum_clique
from attacks._exact import normalised
from attacks._near_pairs import near_pairs
from attacks._tiles import distances, tile_elements
from bench import Prompt


@dataclass(frozen=True)
class Finding:
    """One prompt: whether its generations hold a clique, and which.

    `flagged` is None where the budget did not suffice to tell.
    """

    prompt: Prompt
    images: int  # generations looked at
    flagged: bool | None
    # of these, how many are copies of the prompt's own training pictures; None where it has none
    copies: int | None
    members: tuple[int, ...] = ()  # of the clique, as numbers of generations
    upper_bound: int = 0  # no clique is larger; equal to the number of members where that is proven
    mean_distance: float = 0.0  # of the clique's pairs, normalised tile distance
    medoid: int = -1  # the member nearest to all others, by number
    # its picture, uint8 [H, W, 3]
    representative: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3), dtype=np.uint8))


def examine(
    prompt: Prompt,
    pictures: np.ndarray,
    tiles: int,
    limit: int,
    size: int,
    budget: int,
    copies: int | None = None,
) -> Finding:
    """Is there a clique of at least `size` among pictures, uint8 `[n, H, W, 3]`, with edges where
    every tile is within `limit` (squared)?

    The representative is the clique's medoid, by integer sums and so the same on every machine, the
    first of equals. Of several largest cliques the solver's order decides, and with it the mean
    distance that prompts are ranked by.
    """
    adjacency = near_pairs(pictures, tiles, limit).adjacency
    decision = has_clique(adjacency, size, budget)
    if not decision.answer:
        return Finding(prompt, len(pictures), decision.answer, copies)
    largest = maximum_clique(adjacency, budget)
    members = max(largest.members, decision.members, key=len)
    within = distances(pictures[list(members)], tiles)
    elements = tile_elements(pictures.shape, tiles)
    pairs = [normalised(squared, elements) for squared in within[np.triu_indices(len(members), 1)]]
    medoid = members[int(np.argmin(within.sum(1)))]
    mean = math.fsum(pairs) / len(pairs)
    # A copy of the picture: a view would keep all of the prompt's pictures in memory.
    return Finding(
        prompt,
        len(pictures),
        True,
        copies,
        members,
        max(largest.upper_bound, len(members)),
        mean,
        medoid,
        pictures[medoid].copy(),
    )
