"""Kill `bench run` at random moments and repeat it: nothing is lost, nothing is different.

python tests/campaigns/kills.py --count 200
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from stage import HANGS, bench, generator, import_everything, report, scores_of, unsound

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
RUN = ["run", "--suite", "suite/tiny.toml", "--records", "records", "--store", "store"]


def campaign(count: int, seed: int, folder: Path) -> int:
    import_everything()
    from bench.testbed.tiny import build_tiny_suite

    (folder / "suite").mkdir()
    build_tiny_suite(folder / "suite")
    random, failures = generator(seed), list[str]()
    methods = {"none": [], "wanda": ["-p", "sparsity=0.1"], "wen": ["-p", "iterations=2"]}
    wanted, seconds = {}, {}
    for method, parameters in methods.items():
        start = time.monotonic()
        child = bench([*RUN, "--method", method, *parameters], folder)
        if child.wait(10 * HANGS) != 0:
            print(child.errors.read_text())
            return 1
        seconds[method] = time.monotonic() - start
        wanted[method] = scores_of(folder / "records")
        _clear(folder)
    for number in range(count):
        method = random.choice(list(methods))
        command = [*RUN, "--method", method, *methods[method]]
        number_of_kills, sent = random.choice((1, 1, 1, 2, 3)), []
        for _ in range(number_of_kills):
            child = bench(command, folder)
            time.sleep(random.uniform(0, seconds[method]))
            sent.append(random.choice(SIGNALS))
            child.kill(sent[-1])
            code = child.wait(HANGS)
            if code is None:
                failures.append(f"{number}: {method} hangs after {sent[-1].name}")
            elif wrong := unsound(child):
                failures.append(f"{number}: {method} after {sent[-1].name}: {wrong}")
        child = bench(command, folder)
        code = child.wait(10 * HANGS)
        try:
            if code != 0:
                failures.append(f"{number}: {method} repeated: {child.errors.read_text()[-300:]}")
            elif scores_of(folder / "records") != wanted[method]:
                failures.append(f"{number}: {method} has other scores after {sent}")
        except AssertionError as error:
            failures.append(f"{number}: {method}: {error}")
        _clear(folder)
    return report("kills", count, failures)


def _clear(folder: Path) -> None:
    for name in ("records", "store"):
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sys.exit(campaign(given.count, given.seed, Path(place)))
