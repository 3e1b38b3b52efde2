"""Kill commands at random moments and repeat them: nothing is lost, nothing is different.

python tests/campaigns/kills.py --count 200
python tests/campaigns/kills.py --count 20 --only fetch
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from cases import Case, Undisturbed, from_command_line
from stage import HANGS, bench, generator, report, unsound

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


def campaign(count: int, seed: int, folder: Path, cases: Sequence[Case]) -> int:
    random, failures = generator(seed), list[str]()
    undisturbed = Undisturbed(folder)
    for number in range(count):
        case = random.choice(cases)
        wanted, seconds = undisturbed.of(case)
        sent = list[signal.Signals]()
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            child = bench(case.command, folder)
            time.sleep(random.uniform(0, seconds))
            sent.append(random.choice(SIGNALS))
            child.kill(sent[-1])
            code = child.wait(HANGS)
            if code is None:
                failures.append(f"{number}: {case.name} hangs after {sent[-1].name}")
            elif wrong := unsound(child):
                failures.append(f"{number}: {case.name} after {sent[-1].name}: {wrong}")
        child = bench(case.command, folder)
        code = child.wait(10 * HANGS)
        try:
            if code != 0:
                failures.append(f"{number}: {case.name} repeated: {child.said()[-300:]}")
            elif case.outcome(folder) != wanted:
                failures.append(f"{number}: {case.name} gives something else after {sent}")
        except (AssertionError, ValueError) as error:
            failures.append(f"{number}: {case.name}: {error}")
        case.clear(folder)
    return report("kills", count, failures)


if __name__ == "__main__":
    from_command_line(campaign, __doc__, 200)
