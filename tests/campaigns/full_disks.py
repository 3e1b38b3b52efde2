"""Let the disk be full at a random write of a command, and repeat it when there is room again.

python tests/campaigns/full_disks.py --count 100
python tests/campaigns/full_disks.py --count 20 --only finetune
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from cases import Case, Undisturbed, from_command_line
from stage import HANGS, bench, generator, report, unsound


def full_at(write: int) -> None:
    """From the given flush to the disk on, none succeeds in this process."""
    left, flush = write, os.fsync

    def refuse(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    os.fsync = refuse


def counted(into: Path) -> None:
    """Leave one byte in a file for every flush to the disk of this process."""
    flush = os.fsync

    def count(descriptor: int) -> None:
        with into.open("ab") as stream:
            stream.write(b".")
        flush(descriptor)

    os.fsync = count


def campaign(count: int, seed: int, folder: Path, cases: Sequence[Case]) -> int:
    random, failures = generator(seed), list[str]()
    counts = {case.name: folder / f"writes of {case.name}" for case in cases}
    undisturbed = Undisturbed(folder, lambda case: counted(counts[case.name]))
    for number in range(count):
        case = random.choice(cases)
        wanted, _ = undisturbed.of(case)
        place = random.randrange(counts[case.name].stat().st_size)
        where = f"{number}: {case.name}, full at write {place}"
        child = bench(case.command, folder, lambda place=place: full_at(place))
        code, said = child.wait(10 * HANGS), child.said()
        if code not in case.full or "No space left" not in said:
            failures.append(f"{where}: exit code {code}: {said[-200:]}")
        elif wrong := unsound(child):
            failures.append(f"{where}: {wrong}")
        child = bench(case.command, folder)
        try:
            if child.wait(10 * HANGS) != 0:
                failures.append(f"{where}, repeated: {child.said()[-200:]}")
            elif case.outcome(folder) != wanted:
                failures.append(f"{where}: something else afterwards")
        except (AssertionError, ValueError) as error:
            failures.append(f"{where}: {error}")
        if left := [path for name in case.leaves for path in (folder / name).rglob(".*.tmp")]:
            failures.append(f"{where}: {left[0].name} was left")
        case.clear(folder)
    return report("full disks", count, failures)


if __name__ == "__main__":
    from_command_line(campaign, __doc__, 100)
