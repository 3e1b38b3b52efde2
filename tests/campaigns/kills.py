"""Kill `bench run` at random moments and repeat it: nothing is lost, nothing is different.

python tests/campaigns/kills.py --count 200
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from stage import (
    HANGS,
    RUN,
    begun,
    bench,
    clear,
    from_command_line,
    generator,
    report,
    scores_of,
    unsound,
)

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


def campaign(count: int, seed: int, folder: Path) -> int:
    random, failures = generator(seed), list[str]()
    methods = {"none": [], "wanda": ["-p", "sparsity=0.1"], "wen": ["-p", "iterations=2"]}
    wanted, seconds = {}, {}
    for method, parameters in methods.items():
        start = time.monotonic()
        wanted[method] = begun(folder, [*RUN, "--method", method, *parameters])
        seconds[method] = time.monotonic() - start
        clear(folder)
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
        clear(folder)
    return report("kills", count, failures)


if __name__ == "__main__":
    from_command_line(campaign, __doc__, 200)
