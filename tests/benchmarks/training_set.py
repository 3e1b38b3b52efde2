"""How long it takes to look 1,000 pictures up among 100,000 training pictures in Parquet shards,
and how much memory.

    python tests/benchmarks/training_set.py --threads 2

builds its own shards in a temporary folder and takes some minutes. Pictures are smooth random ones,
some very flat; every fifth picture that is looked up has 1 to 5 noisy copies among them. Brute
force is the table of exact integer products (attacks/_exact.py), on the first pictures of the set,
decoded beforehand, and scaled to all of them.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from attacks._exact import squared_distances, squared_limit
from attacks._nearest import nearest, within
from attacks._training_set import TrainingSet
from bench.store.store import encode_png


def smooth(rng: np.random.Generator, side: int) -> np.ndarray:
    """Random numbers on a 6 x 6 grid, enlarged; one picture in twenty has little contrast."""
    contrast = rng.choice([0.1, 0.5, 1.0], p=[0.05, 0.35, 0.6])
    small = rng.integers(0, 256, 3) * (1 - contrast) + rng.integers(0, 256, (6, 6, 3)) * contrast
    return np.asarray(
        Image.fromarray(small.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    )


def build(
    folder: Path, queries: np.ndarray, pictures: int, shards: int, rng: np.random.Generator
) -> int:
    """Write the shards; how many near copies are among them."""
    wanted = [query for query in range(0, len(queries), 5) for _ in range(rng.integers(1, 6))]
    copies = dict(
        zip(rng.choice(pictures, len(wanted), replace=False).tolist(), wanted, strict=True)
    )
    for number, rows in enumerate(np.array_split(np.arange(pictures), shards)):
        pngs = []
        for row in rows.tolist():
            picture = smooth(rng, queries.shape[1])
            if row in copies:
                noise = rng.integers(-12, 13, picture.shape)
                picture = np.clip(queries[copies[row]] + noise, 0, 255).astype(np.uint8)
            pngs.append(encode_png(picture))
        pq.write_table(
            pa.table({"image": pngs}), folder / f"{number:04d}.parquet", compression="none"
        )
    return len(wanted)


class Clock:
    """Seconds since it was made, and of how many the processors were busy for this process: on a
    machine that others use, these tell more.
    """

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def peak() -> float:
    """Most memory that this process has used so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--sample", type=int, default=4096, help="training pictures compared by brute force"
    )
    parser.add_argument("--threshold", type=float, default=0.15)
    parser.add_argument(
        "--neighbours", type=int, default=51, help="of the search without a limit; 0 leaves it out"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    queries = np.stack([smooth(rng, arguments.side) for _ in range(arguments.queries)])
    limit = squared_limit(arguments.threshold, queries[0].size)
    with tempfile.TemporaryDirectory() as name:
        clock = Clock()
        copies = build(Path(name), queries, arguments.pictures, arguments.shards, rng)
        size = sum(file.stat().st_size for file in Path(name).iterdir()) / 2**20
        print(
            f"{arguments.pictures} pictures {arguments.side}x{arguments.side} in {arguments.shards}"
            f" shards, {size:.0f} MiB, {copies} near copies"
        )
        print(
            f"built in {clock()[0]:.0f} s; load {os.getloadavg()[0]:.1f}, {arguments.threads}"
            f" threads, peak {peak():.2f} GiB",
            flush=True,
        )
        training = TrainingSet.open(Path(name), arguments.side)

        clock = Clock()
        sample: list[np.ndarray] = []
        for _, batch in training:
            if sum(map(len, sample)) < arguments.sample:
                sample.append(batch.copy())
        decoding, decoding_cpu = clock()
        print(
            f"reading and decoding alone: {decoding:.1f} s ({decoding_cpu:.1f} of processors)",
            flush=True,
        )

        clock = Clock()
        found = within(queries, training, limit)
        seconds, cpu = clock()
        pairs = len(queries) * found.scanned
        near = int(found.count.sum())
        print(
            f"within {arguments.threshold}: {seconds:.1f} s ({cpu:.1f} of processors), peak"
            f" {peak():.2f} GiB, load {os.getloadavg()[0]:.1f}"
        )
        print(f"    {near} pairs near, {found.candidates} of {pairs} candidates", flush=True)
        if (found.count[::5] < 1).any() or near < copies:
            raise SystemExit("a planted copy was not found")

        if arguments.neighbours:
            clock = Clock()
            neighbours = nearest(queries, training, arguments.neighbours)
            taken, busy = clock()
            print(
                f"{arguments.neighbours} nearest: {taken:.1f} s ({busy:.1f}), peak {peak():.2f}"
                f" GiB; {neighbours.candidates} candidates",
                flush=True,
            )
            same = (found.squared < 0) | (found.squared == neighbours.squared[:, 0])
            if not same.all():
                raise SystemExit("the two searches disagree on the nearest picture")

        part = np.concatenate(sample)[: arguments.sample]
        clock = Clock()
        table = squared_distances(queries.reshape(len(queries), -1), part.reshape(len(part), -1))
        brute = clock()[1] * found.scanned / len(part)
        search = max(cpu - decoding_cpu, 1e-3)
        print(
            f"brute force: {brute:.1f} s of processors by {len(part)} pictures,"
            f" {brute / search:.1f} times the search without decoding ({search:.1f})"
        )
        agreement(queries, training, part, table, limit, arguments.neighbours)


def agreement(
    queries: np.ndarray,
    training: TrainingSet,
    part: np.ndarray,
    table: np.ndarray,
    limit: int,
    k: int,
) -> None:
    """Both searches among the sample alone against the table of all its distances."""

    class Sample(TrainingSet):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return (
                (list(map(str, range(start, start + 1000))), part[start : start + 1000])
                for start in range(0, len(part), 1000)
            )

    sample = Sample(training.files, training.side)
    found = within(queries, sample, limit)
    if (
        found.count.tolist() != (table <= limit).sum(1).tolist()
        or found.squared.tolist() != np.where(table.min(1) <= limit, table.min(1), -1).tolist()
    ):
        raise SystemExit("brute force finds other matches")
    if found.nearest != [
        str(i) if near else None
        for i, near in zip(table.argmin(1), table.min(1) <= limit, strict=True)
    ]:
        raise SystemExit("brute force finds other nearest pictures")
    if k and not np.array_equal(
        nearest(queries, sample, k).positions, np.argsort(table, axis=1, kind="stable")[:, :k]
    ):
        raise SystemExit("brute force finds other neighbours")
    print(
        f"agreement with brute force on {len(part)} pictures: all of {table.size} pairs,"
        f" {(table <= limit).sum()} of them near"
    )


if __name__ == "__main__":
    main()
