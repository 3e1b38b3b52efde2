"""How much time and memory 30,000 images take from prompt to score when features stream and
pictures are dropped, and whether a killed run loses anything.

    python tests/benchmarks/coco_stream.py [--images 30000] [--steps 1] [--keep-images none]

The tiny pipeline of `bench.testbed.tiny` makes one image for each of so many prompts, and FID is
measured on all of them. One process is killed (SIGKILL) half way, a second goes on; `SUBSET` images
on both sides of the kill are made again without interruption, and their features must be the same
bit for bit. Memory is what the process has resident after every 5,000 images, less what it had when
model and scorers were loaded and the first unit was stored.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import torch

from bench.running.generating import generate
from bench.running.kept_pictures import keep_images_of
from bench.running.prepare import Prepared, prepare
from bench.running.run import run
from bench.running.units import THUMBNAILS
from bench.store.store import SampleKey
from bench.suite.load import load_suite
from bench.testbed.tiny import CAPTIONS, SUITE, build_tiny_suite, write_csv

SUBSET = 1024
BATCH = 64
EVERY = 5_000
MIB = 2**20


@dataclass
class Watch:
    """Notes resident memory after every `EVERY` images; kills its own process after `stop` of
    them.
    """

    stop: int = 0
    start: float = field(default_factory=time.perf_counter)
    loaded: float = 0.0  # MiB, once the model and the scorers are in memory
    highest: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # images, MiB, seconds
    stage: str = ""

    def __call__(self, what: str, done: int, of: int) -> None:
        memory = psutil.Process().memory_info().rss / MIB
        if what == "generate" and done >= 2 * BATCH and not self.loaded:
            self.loaded = memory
        self.highest = max(self.highest, memory)
        counts = (
            what == "generate"
            and done > 0
            and (done >= EVERY * (len(self.curve) + 1) or done == of)
        )
        if counts or what != self.stage:
            if counts:
                self.curve.append((done, memory, time.perf_counter() - self.start))
            print(
                f"  {what:<16}{done:>7,} of {of:>7,}{memory:10.0f}"
                f" MiB{time.perf_counter() - self.start:9.1f} s",
                flush=True,
            )
        self.stage = what
        if self.stop and what == "generate" and done >= self.stop:
            os.kill(os.getpid(), signal.SIGKILL)


def write_suite(folder: Path, images: int, steps: int) -> Path:
    """The tiny suite with `images` prompts of the role quality."""
    write_csv(
        folder / "quality.csv",
        [
            ["id", "prompt"],
            *([f"q{i}", f"{CAPTIONS[i % len(CAPTIONS)]} {i}"] for i in range(images)),
        ],
    )
    text = (
        SUITE.replace("steps = 3", f"steps = {steps}")
        .replace("batch_size = 4", f"batch_size = {BATCH}")
        .replace("images = 6", f"images = {images}")
    )
    text = text.replace(
        '[prompts.quality]\nfile = "clean.csv"', '[prompts.quality]\nfile = "quality.csv"'
    )
    (folder / "stream.toml").write_text(text)
    return folder / "stream.toml"


def ready(suite: Path, work: Path, keep: str) -> Prepared:
    device = torch.device("cpu")
    kept = keep_images_of(keep)
    return prepare(load_suite(str(suite)), "none", {}, work / "store", device, keep=kept)


def child(suite: Path, work: Path, keep: str, stop: int) -> None:
    """One process of the run: the figures go to a file, since what is killed cannot return them."""
    torch.set_num_threads(1)
    watch = Watch(stop)
    record = run(*ready(suite, work, keep), work / "records", report=watch)
    end = psutil.Process().memory_info().rss / MIB
    figures = {
        "loaded": watch.loaded,
        "curve": watch.curve,
        "end": end,
        "highest": watch.highest,
        "seconds": time.perf_counter() - watch.start,
    }
    figures |= {
        "fid": record.scores["fid"].value,
        "n": record.scores["fid"].n,
        "thumbnails": len(record.thumbnails),
        "warnings": record.warnings,
    }
    (work / "figures.json").write_text(json.dumps(figures))


def started(suite: Path, work: Path, keep: str, stop: int = 0) -> int:
    command = [sys.executable, __file__, "--child", str(suite), str(work), keep, str(stop)]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


def features_of(prepared: Prepared, keys: Sequence[SampleKey]) -> np.ndarray:
    asked = prepared.experiment
    extractors = asked.metrics["fid"].extractors(asked.suite, prepared.engine.device)
    (extractor,) = extractors["quality"]
    return prepared.images.store.features(keys, extractor.fingerprint, extractor)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=30_000)
    options.add_argument("--steps", type=int, default=1)
    options.add_argument("--keep-images", default="none", choices=["none", "sample", "all"])
    options.add_argument("--child", nargs=4)
    given = options.parse_args()
    if given.child:
        child(Path(given.child[0]), Path(given.child[1]), given.child[2], int(given.child[3]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, work = Path(scratch), Path(scratch) / "work"
        build_tiny_suite(folder)
        suite = write_suite(folder, given.images, given.steps)
        print(
            f"{given.images:,} images of {given.steps} steps, --keep-images {given.keep_images};"
            f" killed after {given.images // 2:,}"
        )
        started_at = time.perf_counter()
        code = started(suite, work, given.keep_images, given.images // 2)
        assert code == -signal.SIGKILL, f"the first process ended with {code}"
        before = time.perf_counter() - started_at
        assert started(suite, work, given.keep_images) == 0
        figures = json.loads((work / "figures.json").read_text())
        opened_at = time.perf_counter()
        streamed = ready(suite, work, given.keep_images)
        store = streamed.images.store
        shards, stored = len(store.shard_names()), len(store)
        opened = time.perf_counter() - opened_at
        bytes_stored = sum(
            path.stat().st_size for path in store.folder.rglob("*") if path.is_file()
        )
        without = len(store.dropped)
        print(
            f"store: {stored:,} images in {shards} shards, {without:,} without picture,"
            f" {bytes_stored / MIB:.0f} MiB; opened in {opened:.2f} s"
        )
        print(
            f"seconds: {before:.0f} until the kill, {figures['seconds']:.0f} for the rest with"
            f" scores; FID of {figures['n']:,}: {figures['fid']:.4f}"
        )
        print(
            f"thumbnails: {figures['thumbnails']} of at most {THUMBNAILS}; warnings:"
            f" {figures['warnings']}"
        )
        highest, end = figures["highest"] - figures["loaded"], figures["end"] - figures["loaded"]
        print(
            f"memory above the loaded model ({figures['loaded']:.0f} MiB): {highest:.0f} MiB at"
            f" most, {end:.0f} MiB at the end"
        )
        for (first, low, _), (last, high, _) in pairwise(figures["curve"]):
            print(
                f"growth from {first:,} to {last:,} images of the second process:"
                f" {high - low:.0f} MiB"
            )
        uninterrupted = ready(suite, Path(scratch) / "other", "all")
        first_unit = max(given.images // 2 - SUBSET // 2, 0) // BATCH * BATCH
        keys = uninterrupted.images.missing()[first_unit : first_unit + SUBSET]
        generate(*uninterrupted, {}, uninterrupted.images.units.of(keys))
        same = np.array_equal(features_of(streamed, keys), features_of(uninterrupted, keys))
        print(
            f"features of {len(keys):,} images around the kill, made again without interruption:"
            f" {'the same bit for bit' if same else 'DIFFERENT'}"
        )
        assert same and stored >= given.images


if __name__ == "__main__":
    main()
