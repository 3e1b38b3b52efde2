"""How much faster the near pairs of one prompt's pictures are found than by the ways they are
usually found, same pairs every time.

    python tests/benchmarks/near_pairs.py --data far        # a minute or two each: far, half, near,
    straddle

- loop: for each pair and each tile the norm of a difference of float32 tensors, `.item()`, the
  largest (timed on a sample of pairs and scaled)
- float: matrix products in float32, 1024 columns at a time so that they are exact, all tiles of all
  pairs
- int8: all tiles of all pairs by the harness's own integer products, each pair once, nothing left
  out
- products, filter, auto: the engines of attacks/_near_pairs.py

Data: `far` smooth random pictures and ten noisy copies of one; `near` noisy copies of one picture;
`half` as many copies as others; `straddle` copies with so much noise that their distances lie on
both sides of the limit. Every way runs in the same process on the same pictures; ways take turns,
and the least time of each counts.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from attacks._exact import FLOAT_CHUNK, int8_is_exact, squared_limit
from attacks._near_pairs import near_pairs
from attacks._tiles import distances, tile_elements

THRESHOLD = 0.1


def smooth(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """Random colours on an 8 x 8 grid, enlarged."""
    result = np.empty((count, side, side, 3), dtype=np.uint8)
    for picture in result:
        small = torch.from_numpy(rng.integers(0, 256, (1, 3, 8, 8)).astype(np.float32))
        large = torch.nn.functional.interpolate(
            small, size=(side, side), mode="bicubic", align_corners=False
        )
        picture[:] = large[0].clamp(0, 255).permute(1, 2, 0).round().numpy()
    return result


def make(kind: str, count: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    pictures = smooth(rng, count, side)
    copies = {"far": 10, "half": count // 2}.get(kind, count)
    one = pictures[0].copy()
    for member in rng.permutation(count)[:copies]:
        spread = rng.uniform(14, 22) if kind == "straddle" else 5
        pictures[member] = np.clip(
            one + spread * rng.standard_normal(one.shape, dtype=np.float32), 0, 255
        ).round()
    return pictures


def loop_distance(a: torch.Tensor, b: torch.Tensor, tiles: int) -> float:
    side = a.shape[0] // tiles
    largest = 0.0
    for y in range(tiles):
        for x in range(tiles):
            part = (slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
            largest = max(largest, torch.norm(a[part] - b[part]).item())
    return largest


def timed_loop(pictures: np.ndarray, tiles: int, sample: int) -> float:
    """Seconds for all pairs, from a sample: pairs of 40 pictures that are tensors already, as they
    are in a loop over all.
    """
    tensors = [torch.from_numpy(picture).float() / 255 for picture in pictures[:40]]
    pairs = [(i, j) for i in range(40) for j in range(i)][:sample]
    start = time.perf_counter()
    for i, j in pairs:
        loop_distance(tensors[i], tensors[j], tiles)
    return (time.perf_counter() - start) / len(pairs) * len(pictures) * (len(pictures) - 1) / 2


def float_products(pictures: np.ndarray, tiles: int, limit: int) -> np.ndarray:
    count, side = len(pictures), pictures.shape[1] // tiles
    near = np.ones((count, count), dtype=bool)
    for y in range(tiles):
        for x in range(tiles):
            tile = pictures[:, y * side : (y + 1) * side, x * side : (x + 1) * side].reshape(
                count, -1
            )
            total = torch.zeros((count, count), dtype=torch.int64)
            for start in range(0, tile.shape[1], FLOAT_CHUNK):
                values = torch.from_numpy(tile[:, start : start + FLOAT_CHUNK]).float() - 128
                norms = values.square().sum(1)
                total += (norms[:, None] + norms[None, :]).long() - 2 * (values @ values.t()).long()
            near &= total.numpy() <= limit
    np.fill_diagonal(near, False)
    return near


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["far", "half", "near", "straddle"], default="far")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="turns of the engines; the loop and the float products take one fewer",
    )
    parser.add_argument("--sample", type=int, default=200, help="pairs that the loop is timed on")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    pictures, tiles = make(arguments.data, arguments.pictures, arguments.side), arguments.tiles
    limit = squared_limit(THRESHOLD, tile_elements(pictures.shape, tiles))
    not_self = ~np.eye(len(pictures), dtype=bool)
    chosen = near_pairs(pictures, tiles, limit)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ways: dict[str, Callable[[], np.ndarray]] = {
        "auto": lambda: near_pairs(pictures, tiles, limit).adjacency,
        "products": lambda: near_pairs(pictures, tiles, limit, "products").adjacency,
        "filter": lambda: near_pairs(pictures, tiles, limit, "filter").adjacency,
        "int8" if int8_is_exact() else "all pairs": (
            lambda: (distances(pictures, tiles) <= limit) & not_self
        ),
        "float": lambda: float_products(pictures, tiles, limit),
    }
    seconds = dict.fromkeys([*ways, "loop"], float("inf"))
    for turn in range(arguments.rounds):
        for name, way in ways.items():
            if name == "float" and turn == arguments.rounds - 1 > 0:
                continue
            start = time.perf_counter()
            found = way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
            if not np.array_equal(found, chosen.adjacency):
                raise SystemExit(f"{name} finds other pairs than auto")
        if turn < arguments.rounds - 1 or turn == 0:
            seconds["loop"] = min(seconds["loop"], timed_loop(pictures, tiles, arguments.sample))
    near = int(chosen.adjacency.sum()) // 2
    print(
        f"{arguments.data}: {len(pictures)} pictures of {arguments.side} x {arguments.side}, {near}"
        f" near pairs, {arguments.threads} threads"
    )
    print(
        f"auto took {chosen.engine}; the process with auto alone and its pictures peaked at"
        f" {memory:.2f} GiB\nway       seconds  auto is faster by"
    )
    for name, least in seconds.items():
        print(
            f"{name:<9} {least:>7.3f} "
            f" {least / seconds['auto']:.1f}{'  (scaled)' if name == 'loop' else ''}"
        )
    for engine in ("filter", "products"):
        print(f"{engine} decided: {near_pairs(pictures, tiles, limit, engine).work}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
