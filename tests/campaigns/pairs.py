"""Two `bench run` of the same question at once, on one store: both end well, with the same scores,
and no image is stored twice.

    python tests/campaigns/pairs.py --count 20
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kills import RUN, _clear
from stage import HANGS, bench, generator, import_everything, report, scores_of, unsound


def campaign(count: int, seed: int, folder: Path) -> int:
    import_everything()
    from bench.testbed.tiny import build_tiny_suite

    (folder / "suite").mkdir()
    build_tiny_suite(folder / "suite")
    random, failures = generator(seed), list[str]()
    command = [*RUN, "--method", "none"]
    child = bench(command, folder)
    if child.wait(10 * HANGS) != 0:
        print(child.errors.read_text())
        return 1
    wanted = scores_of(folder / "records")
    _clear(folder)
    for number in range(count):
        first = bench(command, folder)
        time.sleep(random.uniform(0, 1))
        second = bench(command, folder)
        for child in (first, second):
            if child.wait(20 * HANGS) != 0 or unsound(child):
                failures.append(f"{number}: {child.errors.read_text()[-300:]}")
        try:
            if scores_of(folder / "records") != wanted:
                failures.append(f"{number}: other scores")
        except AssertionError as error:
            failures.append(f"{number}: {error}")
        if twice := stored_twice(folder / "store"):
            failures.append(f"{number}: {twice} images are stored twice")
        _clear(folder)
    return report("pairs", count, failures)


def stored_twice(store: Path) -> int:
    """How many images of a store lie in more than one shard."""
    import pyarrow.parquet as pq

    counts: Counter[tuple[str, str, int]] = Counter()
    for path in store.rglob("*.parquet"):
        table = pq.read_table(path, columns=["prompt", "seed"]).to_pydict()
        for prompt, image in zip(table["prompt"], table["seed"], strict=True):
            counts[path.parent.name, prompt, image] += 1
    return sum(count > 1 for count in counts.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sys.exit(campaign(given.count, given.seed, Path(place)))
