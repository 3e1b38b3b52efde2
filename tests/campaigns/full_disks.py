"""Let the disk be full at a random write of `bench run`, and repeat it when there is room again.

python tests/campaigns/full_disks.py --count 100
"""

from __future__ import annotations

import errno
import os
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


def campaign(count: int, seed: int, folder: Path) -> int:
    random, failures = generator(seed), list[str]()
    command = [*RUN, "--method", "none"]
    wanted = begun(folder, command, lambda: counted(folder / "writes"))
    writes = (folder / "writes").stat().st_size
    clear(folder)
    for number in range(count):
        place = random.randrange(writes)
        child = bench(command, folder, lambda place=place: full_at(place))
        code = child.wait(10 * HANGS)
        said = child.errors.read_text()
        if code != 2 or "No space left" not in said:
            failures.append(f"{number}: full at write {place}: exit code {code}: {said[-200:]}")
        elif wrong := unsound(child):
            failures.append(f"{number}: full at write {place}: {wrong}")
        child = bench(command, folder)
        try:
            if child.wait(10 * HANGS) != 0:
                failures.append(f"{number}: repeated: {child.errors.read_text()[-200:]}")
            elif scores_of(folder / "records") != wanted:
                failures.append(f"{number}: other scores after a full disk at write {place}")
        except AssertionError as error:
            failures.append(f"{number}: {error}")
        if list(folder.glob("store/**/.*.tmp")):
            failures.append(f"{number}: a temporary file was left")
        clear(folder)
    return report("full disks", count, failures)


if __name__ == "__main__":
    from_command_line(campaign, __doc__, 100)
