"""Largest cliques of a graph, exactly: is there a clique of `size` nodes, and which is the largest?

Carlini et al. (2023) call a prompt memorized when the graph of its near-equal generations holds a
large clique. An answer here is proven or it is withheld: every search has a budget of nodes, and
what runs out of it says so. Connected components, which public code uses in place of cliques, only
bound them from above.

Sets of nodes are Python integers, a bit a node. The search is branch and bound with greedy
colouring (Tomita and Seki 2003; bit sets as in San Segundo et al. 2011): a clique takes at most one
node of each colour. Re-colouring (Tomita et al. 2010) and inconsistent classes (San Segundo et al.
2015) saved up to three quarters of the search nodes, but took longer on all graphs tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse.csgraph import connected_components

from bench import UserError

# search nodes: seconds for 300 nodes of a random graph with nine in ten of its edges
BUDGET = 200_000


@dataclass(frozen=True)
class Decision:
    """Whether there is a clique of at least so many nodes."""

    answer: bool | None  # None: unknown within the budget
    members: tuple[int, ...]  # such a clique, sorted, when the answer is True; else empty
    nodes: int  # search nodes spent


@dataclass(frozen=True)
class Clique:
    """A largest clique with its certificate."""

    members: tuple[int, ...]  # sorted
    upper_bound: int  # proven: no clique has more nodes
    nodes: int  # search nodes spent
    # proven: of all largest cliques this is the one that `tie="canonical"` asks for
    canonical: bool = False

    @property
    def status(self) -> Literal["exact", "unknown"]:
        return "exact" if self.upper_bound == len(self.members) else "unknown"


def has_clique(adjacency: np.ndarray, size: int, budget: int = BUDGET) -> Decision:
    """Whether a graph, bool `[n, n]` and symmetric, has a clique of at least `size` nodes.

    The diagonal counts for nothing.

    Raises `ValueError` for another array or a size below 1, `UserError` for a budget below 1.
    """
    graph = _checked(adjacency, budget)
    if size <= 0:
        raise ValueError(f"the size of a clique must be at least 1, not {size}")
    members, upper, nodes = _solved(graph, size - 1, size, budget)
    if len(members) >= size:
        return Decision(True, members, nodes)
    return Decision(False if upper < size else None, (), nodes)


def maximum_clique(
    adjacency: np.ndarray,
    budget: int = BUDGET,
    weights: np.ndarray | None = None,
    tie: Literal["first", "canonical"] = "first",
) -> Clique:
    """A largest clique of a graph, bool `[n, n]` and symmetric. The diagonal counts for nothing.

    `tie="first"` takes the first that is found, always the same for the same graph.
    `tie="canonical"` takes, of all largest cliques, the one with the smallest sum of `weights`
    (integers `[n, n]`, symmetric) over its pairs, then the lexicographically first; that can take
    far longer than the size, and the budget holds for both together. Raises as `has_clique` does.
    """
    graph = _checked(adjacency, budget)
    distances = _checked_weights(weights, graph) if tie == "canonical" else None
    members, upper, nodes = _solved(graph, 0, len(graph), budget)
    if distances is None or upper > len(members):
        return Clique(members, upper, nodes)
    members, canonical, spent = _lightest(graph, distances, members, budget - nodes)
    return Clique(members, upper, nodes + spent, canonical)


def k_core(adjacency: np.ndarray, k: int) -> np.ndarray:
    """The nodes, bool `[n]`, of the largest subgraph in which every node has at least `k`
    neighbours.
    """
    graph = _checked(adjacency)
    kept = np.ones(len(graph), dtype=bool)
    degrees = graph.sum(1)
    while (leaving := kept & (degrees < k)).any():
        kept &= ~leaving
        degrees -= graph[leaving].sum(0)
    return kept


def component_sizes(adjacency: np.ndarray) -> list[int]:
    """Numbers of nodes of the connected components, largest first: never below the largest clique,
    and no substitute for it.
    """
    _, labels = connected_components(_checked(adjacency), directed=False)
    return sorted(np.bincount(labels).tolist(), reverse=True)


def _checked(adjacency: np.ndarray, budget: int = 1) -> np.ndarray:
    if (
        adjacency.dtype != bool
        or adjacency.ndim != 2
        or adjacency.shape[0] != adjacency.shape[1]
        or (adjacency != adjacency.T).any()
    ):
        raise ValueError(
            f"the adjacency must be a symmetric bool [n, n], not {adjacency.dtype}"
            f" {list(adjacency.shape)}"
        )
    if budget < 1:
        raise UserError(f"the budget of the clique search must be at least 1 node, not {budget}")
    return adjacency & ~np.eye(len(adjacency), dtype=bool)  # a copy


def _checked_weights(weights: np.ndarray | None, graph: np.ndarray) -> np.ndarray:
    if (
        weights is None
        or weights.dtype.kind != "i"
        or weights.shape != graph.shape
        or (weights != weights.T).any()
    ):
        raise ValueError(
            f"the canonical clique needs symmetric integer weights {list(graph.shape)}"
        )
    return weights.astype(np.int64)


def _solved(
    graph: np.ndarray, floor: int, target: int, budget: int
) -> tuple[tuple[int, ...], int, int]:
    """The largest clique of more than `floor` nodes, or the first found of at least `target`; ()
    where there is none.

    Also an upper bound for all cliques, where it is above `floor`, and the search nodes spent.
    """
    found: tuple[int, ...] = ()
    kept = np.arange(len(graph))
    while True:
        graph, kept = _pruned(graph, kept, floor + 1)
        greedy = _greedy(graph)
        if len(greedy) <= floor:
            break
        found, floor = _sorted(kept[greedy]), len(greedy)
        if floor >= target:
            return found, floor, 0
    order = _degeneracy_order(graph)
    better, upper, nodes = _searched(graph[np.ix_(order, order)], floor, target, budget)
    return _sorted(kept[order[better]]) if better else found, upper, nodes


def _pruned(graph: np.ndarray, ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A graph and the names of its nodes without what no clique of `size` nodes can use: nodes and
    edges, down to a fixed point.

    Every node of such a clique has `size - 1` neighbours, and every edge `size - 2` common ones.
    """
    while True:
        core = k_core(graph, size - 1)
        graph, ids = graph[np.ix_(core, core)], ids[core]
        ones = graph.astype(np.float32)
        useful = graph & (ones @ ones >= size - 2)  # exact: counts below 2**24
        if (useful == graph).all():
            return graph, ids
        graph = useful


def _greedy(graph: np.ndarray) -> list[int]:
    """A clique made of, again and again, the candidate with the most candidates as neighbours."""
    clique: list[int] = []
    left = np.ones(len(graph), dtype=bool)
    degrees = graph.sum(1)
    while left.any():
        node = int(np.where(left, degrees, -1).argmax())
        clique.append(node)
        leaving = left & ~graph[node]
        left &= graph[node]
        degrees -= graph[leaving].sum(0)
    return clique


def _degeneracy_order(graph: np.ndarray) -> np.ndarray:
    """Nodes such that each has the fewest neighbours among those up to it.

    In this order, greedy colours are at most one more than the degeneracy.
    """
    order = np.zeros(len(graph), dtype=np.int64)
    degrees = graph.sum(1)
    for place in reversed(range(len(graph))):
        order[place] = node = int(degrees.argmin())
        degrees -= graph[node]
        # more than any that is left, even after all of its neighbours have gone
        degrees[node] = 2 * len(graph)
    return order


def _searched(
    graph: np.ndarray, floor: int, target: int, budget: int
) -> tuple[list[int], int, int]:
    """The largest clique of more than `floor` nodes, or the first found of `target`; [] where there
    is none.

    Also an upper bound for all cliques, where it is above `floor`, and the search nodes spent.
    """
    everyone, rows, strangers = _bitsets(graph)
    best: list[int] = []
    members: list[int] = []
    nodes, upper = 0, floor
    # a list, as cliques may be larger than Python recurses
    levels = [(everyone, *_branches(everyone, strangers, floor))]
    while levels:
        del members[len(levels) - 1 :]
        candidates, branches, bounds = levels[-1]
        if not branches or len(members) + bounds[-1] <= floor:
            levels.pop()
            continue
        if not members:
            # for the cliques of this branch and of those to come; those before are done
            upper = bounds[-1]
        if nodes == budget:
            return best, upper, nodes
        nodes += 1
        bounds.pop()
        node = branches.pop()
        members.append(node)
        levels[-1] = candidates ^ 1 << node, branches, bounds
        remaining = candidates & rows[node]
        if remaining:
            levels.append((remaining, *_branches(remaining, strangers, floor - len(members))))
        elif len(members) > floor:
            best, floor = members.copy(), len(members)
            if floor >= min(target, upper):
                break
    return best, floor, nodes


def _branches(candidates: int, strangers: list[int], enough: int) -> tuple[list[int], list[int]]:
    """Candidates to branch on, from the last to the first, and beside each how large a clique of
    it, those before it and the rest can be.

    Colours are given greedily to nodes in their order. Among those of the first `enough` colours no
    clique is larger than that.
    """
    branches: list[int] = []
    bounds: list[int] = []
    colour = 0
    while candidates:
        colour += 1
        free, taken = candidates, 0
        while free:
            lowest = free & -free
            taken |= lowest
            node = lowest.bit_length() - 1
            free &= strangers[node]
            if colour > enough:
                branches.append(node)
                bounds.append(colour)
        candidates ^= taken
    return branches, bounds


def _lightest(
    graph: np.ndarray, weights: np.ndarray, first: tuple[int, ...], budget: int
) -> tuple[tuple[int, ...], bool, int]:
    """Of all cliques as large as `first`, the largest there are, that of the smallest weight, of
    several the lexicographically first.

    Also whether this is proven, else it is the best one seen, and the search nodes spent.
    """
    size = len(first)
    graph, kept = _pruned(graph, np.arange(len(graph)), size)
    weights = weights[np.ix_(kept, kept)]
    everyone, rows, strangers = _bitsets(graph)
    best = _swapped(graph, weights, np.searchsorted(kept, first))
    # one as light may come earlier
    limit = int(weights[np.ix_(best, best)][np.triu_indices(size, 1)].sum()) + 1
    # Twice the weight of a clique sums, over its nodes, the weights to all others: to those to
    # come, no less than a node's smallest.
    smallest = np.sort(np.where(graph, weights, np.iinfo(np.int64).max), axis=1)[
        :, : max(size - 1, 0)
    ].cumsum(1)
    # [number of them, node]
    to_come = np.concatenate([np.zeros((1, len(rows)), dtype=np.int64), smallest.T])
    members: list[int] = []
    nodes = 0
    # candidates, weights of each to all members, weight of the members
    levels = [(everyone, np.zeros(len(rows), dtype=np.int64), 0)]
    while levels:
        del members[len(levels) - 1 :]
        candidates, costs, weight = levels[-1]
        missing = size - len(members)
        if missing == 0 and weight < limit:
            best, limit = members.copy(), weight
        # The members to come are of different colours, and each costs at least the least of its
        # colour.
        branches, colours = _branches(candidates, strangers, 0)
        hopeful = 0 < missing <= max(colours, default=0)
        if hopeful:
            prices = 2 * costs[branches] + to_come[missing - 1, branches]
            minima = np.minimum.reduceat(prices, np.flatnonzero(np.diff(colours, prepend=0)))
            hopeful = 2 * weight + int(np.sort(minima)[:missing].sum()) < 2 * limit
        if not hopeful:
            levels.pop()
            continue
        if nodes == budget:
            return _sorted(kept[best]), False, nodes
        nodes += 1
        lowest = candidates & -candidates  # cliques come in lexicographic order
        node = lowest.bit_length() - 1
        members.append(node)
        levels[-1] = candidates ^ lowest, costs, weight
        levels.append((candidates & rows[node], costs + weights[node], weight + int(costs[node])))
    return _sorted(kept[best]), True, nodes


def _swapped(graph: np.ndarray, weights: np.ndarray, clique: np.ndarray) -> list[int]:
    """A clique made lighter by exchanging a member for another node, the best exchange first, until
    none helps.
    """
    inside = np.zeros(len(graph), dtype=bool)
    inside[clique] = True
    while True:
        # Nodes outside that miss one member only, and that member of each.
        outside = np.flatnonzero(~inside & (graph[:, inside].sum(1) == inside.sum() - 1))
        replaced = (inside & ~graph[outside]).argmax(1) if len(outside) else outside
        costs = weights[:, inside].sum(1)
        gains = (
            costs[replaced]
            - weights[replaced, replaced]
            - (costs[outside] - weights[outside, replaced])
        )
        if not (gains > 0).any():
            return np.flatnonzero(inside).tolist()
        inside[outside[gains.argmax()]], inside[replaced[gains.argmax()]] = True, False


def _bitsets(graph: np.ndarray) -> tuple[int, list[int], list[int]]:
    """All nodes, then for each node its neighbours and all others but itself."""
    everyone = (1 << len(graph)) - 1
    rows = [
        int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little") for row in graph
    ]
    return everyone, rows, [everyone ^ row ^ 1 << node for node, row in enumerate(rows)]


def _sorted(ids: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(ids.tolist()))
