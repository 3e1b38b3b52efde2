"""Two `bench run` of the same question at once, on one store: both end well, with the same scores,
and no image is stored twice.

    python tests/campaigns/pairs.py --count 20
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from cases import CASES, Undisturbed, from_command_line
from stage import HANGS, bench, generator, report, scores_of, unsound


def campaign(count: int, seed: int, folder: Path) -> int:
    random, failures = generator(seed), list[str]()
    case = CASES[0]
    wanted, _ = Undisturbed(folder).of(case)
    for number in range(count):
        first = bench(case.command, folder)
        time.sleep(random.uniform(0, 1))
        second = bench(case.command, folder)
        for child in (first, second):
            if child.wait(20 * HANGS) != 0 or unsound(child):
                failures.append(f"{number}: {child.said()[-300:]}")
        try:
            if scores_of(folder / "records") != wanted:
                failures.append(f"{number}: other scores")
        except AssertionError as error:
            failures.append(f"{number}: {error}")
        if twice := stored_twice(folder / "store"):
            failures.append(f"{number}: {twice} images are stored twice")
        case.clear(folder)
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
    from_command_line(campaign, __doc__, 20, chooses=False)
