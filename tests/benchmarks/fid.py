"""What the Frechet distance of d features costs in time and memory: moments gathered in blocks and
two factors, against all features in one piece.

    python tests/benchmarks/fid.py
    python tests/benchmarks/fid.py --n 500 --dims 256

The first takes d = 2048 and n = 500, 5,000 and 30,000 random features against 3,000. "Before" holds
all features as float64, calls numpy's covariance and takes matrix roots from eigendecompositions.
Each measurement runs in a process of its own, so that the peak of one does not hide another's; both
get the features block by block.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from bench.statistics.frechet import frechet_distance, moments

ROWS = 1024  # of a block, as sample sets give them


def blocks(seed: int, n: int, dims: int) -> Iterator[np.ndarray]:
    """Correlated float32 features of unequal size, a block at a time."""
    random, scale = np.random.default_rng(seed), np.logspace(0, -3, dims, dtype=np.float32)
    for start in range(0, n, ROWS):
        rows = random.standard_normal((min(ROWS, n - start), dims), dtype=np.float32) * scale
        yield np.maximum(rows + 0.5 * np.roll(rows, 1, axis=1), 0)


def before(seed: int, n: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    features = np.concatenate(list(blocks(seed, n, dims))).astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False)


def distance_before(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    shared = np.linalg.svd(root(sigma2) @ root(sigma1), compute_uv=False).sum()
    return float((mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * shared)


def one(how: str, n: int, dims: int) -> dict[str, float]:
    """Seconds for the moments of `n` features, seconds for the distance, the value, and the
    process's peak in MiB above what it began with.
    """
    real = moments(blocks(1, 3000, dims))
    start_peak, start = _peak(), time.perf_counter()
    if how == "before":
        mu, sigma = before(0, n, dims)
    else:
        found = moments(blocks(0, n, dims))
        mu, sigma = found.mu, found.sigma
    gathered = time.perf_counter()
    value = (distance_before if how == "before" else frechet_distance)(
        mu, sigma, real.mu, real.sigma
    )
    return {
        "moments": gathered - start,
        "distance": time.perf_counter() - gathered,
        "peak": _peak() - start_peak,
        "value": value,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, nargs="+", default=[500, 5000, 30000])
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument("--one", choices=["before", "now"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.n[0], arguments.dims)))
        return
    print("     n         moments s  distance s  peak MiB above start          value")
    for n in arguments.n:
        found = {}
        for how in ("before", "now"):
            command = [
                sys.executable,
                __file__,
                "--one",
                how,
                "--n",
                str(n),
                "--dims",
                str(arguments.dims),
            ]
            found[how] = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
            told = found[how]
            print(
                f"{n:6d} {how:>6} {told['moments']:11.1f} {told['distance']:11.1f}"
                f" {told['peak']:21.0f} {told['value']:14.8f}"
            )
        a, b = found["before"], found["now"]
        times = (a["moments"] + a["distance"]) / (b["moments"] + b["distance"])
        print(
            f"       ratio {times:.1f} times as fast; values differ by"
            f" {abs(a['value'] - b['value']) / b['value']:.1e} of the value"
        )


if __name__ == "__main__":
    main()
