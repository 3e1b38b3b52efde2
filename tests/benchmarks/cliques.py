"""How long the clique solver takes, against networkx enumeration of all maximal cliques, on graphs
of the kinds that a prompt's generations make.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/benchmarks/cliques.py --cap 60

Enumeration runs in a process of its own, which is ended after `--cap` seconds. Where it finishes,
both must find the same size. "has 10" is the attack's question alone: are there 10 generations that
are all near to each other. Times are of one run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection

import networkx as nx
import numpy as np

from attacks._cliques import has_clique, maximum_clique


def sparse(nodes: int, density: float, planted: int = 0) -> np.ndarray:
    generator = np.random.default_rng(0)
    upper = np.triu(generator.random((nodes, nodes)) < density, 1)
    graph = upper | upper.T
    members = generator.permutation(nodes)[:planted]
    graph[np.ix_(members, members)] = ~np.eye(planted, dtype=bool)
    return graph


def points(nodes: int, dimensions: int, near: float, cluster: int = 0) -> np.ndarray:
    """Joined are the nearest fraction `near` of all pairs of normally distributed points, the first
    `cluster` of them close to each other.
    """
    generator = np.random.default_rng(0)
    values = generator.standard_normal((nodes, dimensions))
    values[:cluster] = values[:1] + values[:cluster] / 4
    squared = np.square(values[:, None] - values[None]).sum(-1)
    return (squared <= np.quantile(squared[np.triu_indices(nodes, 1)], near)) & ~np.eye(
        nodes, dtype=bool
    )


def without_matching(nodes: int) -> np.ndarray:
    """All edges but those of pairs: 2 ** (nodes / 2) maximal cliques."""
    numbers = np.arange(nodes)
    return numbers[:, None] // 2 != numbers[None] // 2


GRAPHS = {
    "random, 500 nodes, 3 %": lambda: sparse(500, 0.03),
    "and a clique of 10": lambda: sparse(500, 0.03, planted=10),
    "random, 300 nodes, 30 %": lambda: sparse(300, 0.3),
    "random, 200 nodes, 50 %": lambda: sparse(200, 0.5),
    "random, 200 nodes, 70 %": lambda: sparse(200, 0.7),
    "random, 300 nodes, 90 %": lambda: sparse(300, 0.9),
    "plane, 200 nodes, 10 %": lambda: points(200, 2, 0.1),
    "plane, 500 nodes, 5 %": lambda: points(500, 2, 0.05),
    "plane, 500 nodes, 20 %": lambda: points(500, 2, 0.2),
    "plane, 500 nodes, 50 %": lambda: points(500, 2, 0.5),
    "plane, 500 nodes, 80 %": lambda: points(500, 2, 0.8),
    "20-d, 500 nodes, 5 %": lambda: points(500, 20, 0.05),
    "20-d, 500 nodes, 30 %": lambda: points(500, 20, 0.3),
    "20-d, 500, 100 close": lambda: points(500, 20, 0.05, cluster=100),
    "complete but pairs, 30": lambda: without_matching(30),
    "complete but pairs, 36": lambda: without_matching(36),
    "complete but pairs, 500": lambda: without_matching(500),
    "complete, 500 nodes": lambda: sparse(500, 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cap",
        type=float,
        default=20,
        help="seconds after which enumeration of a graph is given up",
    )
    arguments = parser.parse_args()
    print(
        "graph                    edges  largest  status   nodes    ours      has 10    networkx   "
        "  ratio"
    )
    for name, make in GRAPHS.items():
        graph = make()
        start = time.perf_counter()
        clique = maximum_clique(graph)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        flagged = has_clique(graph, 10).answer
        decision = time.perf_counter() - start
        size = len(clique.members)
        if clique.status == "exact" and flagged is not (size >= 10):
            raise SystemExit(f"{name}: the decision does not fit the largest clique")
        found = enumerated(graph, arguments.cap)
        if found and clique.status == "exact" and found[0] != size:
            raise SystemExit(f"{name}: enumeration finds {found[0]} nodes and not {size}")
        largest = (
            f"{size:>7}" if clique.status == "exact" else f"{size}..{clique.upper_bound}".rjust(7)
        )
        other = (
            f"{found[1]:>9.3f} s  {found[1] / ours:>6.1f}x"
            if found
            else f"  > {arguments.cap:>5.0f} s  >{arguments.cap / ours:>5.0f}x"
        )
        line = (
            f"{name:<23} {graph.mean():>5.0%}  {largest}  {clique.status:<7} {clique.nodes:>6}"
            f" {ours:>7.3f} s {decision:>7.3f} s {other}"
        )
        print(line, flush=True)


def enumerated(graph: np.ndarray, cap: float) -> tuple[int, float] | None:
    """Size of a largest clique and seconds taken; None where `cap` seconds were not enough."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=_enumerate, args=(graph, theirs))
    process.start()
    try:
        return ours.recv() if ours.poll(cap) else None
    finally:
        process.kill()
        process.join()


def _enumerate(graph: np.ndarray, reply: Connection) -> None:
    reference = nx.from_numpy_array(graph)
    start = time.perf_counter()
    largest = max(nx.find_cliques(reference), key=len)
    reply.send((len(largest), time.perf_counter() - start))


if __name__ == "__main__":
    main()
