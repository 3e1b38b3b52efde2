"""Images a second by one process, by one worker of Ray and by two, each on one thread, on the
testbed's model.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/benchmarks/executors.py --images 256 --rounds 2
    # some minutes; on a machine with two idle cores

Loading is left out: rates count from when the workers have their model (of two, from the mean of
both times) until the last image is stored. The three take turns. The load of the machine is printed
with each, since a third process on two cores takes what is to be measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bench.running.executors import Executor, Local
from bench.running.prepare import prepare
from bench.running.ray import Ray
from bench.suite.load import load_suite
from bench.suite.suite import Suite


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="testbed")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {"local": [], "1 worker": [], "2 workers": []}
    for _ in range(arguments.rounds):
        for name, found in rates.items():
            executor = Local() if name == "local" else Ray(workers=int(name[0]))
            try:
                found.append(rate(arguments.suite, arguments.images, executor))
            finally:
                if isinstance(executor, Ray):
                    executor.close()
            print(
                f"{name:>9}: {found[-1]:6.2f} images a second   (load {os.getloadavg()[0]:.1f} on"
                f" {os.cpu_count()} cores)",
                flush=True,
            )
    middle = {name: statistics.median(found) for name, found in rates.items()}
    print(f"2 workers to 1: {middle['2 workers'] / middle['1 worker']:.2f}")
    print(f"1 worker to local: {middle['1 worker'] / middle['local']:.2f}")
    print(f"2 workers to local: {middle['2 workers'] / middle['local']:.2f}")


def rate(name: str, images: int, executor: Executor) -> float:
    """Images a second of `images` clean prompts, sampled into a store of their own."""
    suite = load_suite(name)
    bare = Suite(suite.settings.model_copy(update={"metrics": {}, "attacks": {}}), suite.file)
    prompts = suite.prompts("quality")
    loaded: list[float] = []

    def report(what: str, done: int, total: int) -> None:
        if what == "load workers" and done > len(loaded):
            loaded.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = prepare(bare, "none", {}, Path(folder), torch.device("cpu"))
        keys = run.images.sample_set(prompts, -(-images // len(prompts))).keys[:images]
        if isinstance(executor, Local):
            run.engine.load()
            loaded.append(time.perf_counter())
        executor.make(*run, {}, run.images.units.of(keys), frozenset(), report)
        return len(keys) / (time.perf_counter() - statistics.fmean(loaded))


if __name__ == "__main__":
    main()
