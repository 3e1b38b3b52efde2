"""How long the leaderboards of many records take: `bench leaderboard` and `--check`, each as a user
calls it, in a process of its own.

    PYTHONPATH=. python tests/benchmarks/many_records.py --records 200 --methods 30

The committed records of a suite are written again under other names, with their numbers shifted, as
rows of one table.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.records.parts import PARTS, REFERENCE
from bench.records.record import RunRecord, load_records

HERE = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--methods", type=int, default=30)
    parser.add_argument("--suite", default="testbed")
    arguments = parser.parse_args()
    known = [
        record
        for record in load_records(HERE / "leaderboards/records")[0]
        if record.suite == arguments.suite
    ]
    known.sort(key=lambda record: record.method != REFERENCE)
    with tempfile.TemporaryDirectory() as folder:
        records, out = Path(folder, "records"), Path(folder, "out")
        for number in range(arguments.records):
            renamed(
                known[number % len(known)] if number else known[0], number, arguments.methods
            ).save(records)
        size = sum(path.stat().st_size for path in records.rglob("*.json"))
        print(
            f"{arguments.records} records of {arguments.methods} methods on {arguments.suite}:"
            f" {size / 2**20:.0f} MiB"
        )
        for name, more in (("bench leaderboard", []), ("bench leaderboard --check", ["--check"])):
            start, before = time.perf_counter(), processor_seconds()
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "bench",
                    "leaderboard",
                    "--records",
                    records,
                    "--out",
                    out,
                    *more,
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                cwd=HERE,
            )
            print(
                f"{name}: {time.perf_counter() - start:.1f} s, of the processor"
                f" {processor_seconds() - before:.1f} s"
            )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        page = (out / f"{arguments.suite}.html").stat().st_size / 2**20
        print(f"peak memory {peak:.2f} GiB; the page has {page:.0f} MiB")


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def renamed(record: RunRecord, number: int, methods: int) -> RunRecord:
    """A copy under another name and other parameters whose numbers are shifted by prompt; the first
    one stays `none`.
    """
    copy = record.model_copy(deep=True)
    if number:
        copy.method = f"method_{number % methods:02d}"
        copy.parameters = copy.changed = {"strength": number}
    copy.run = hashlib.sha256(str(number).encode()).hexdigest()[:12]
    shift = np.random.default_rng(number)
    for values in copy.per_prompt.values():
        values.update(
            {prompt: value + float(shift.normal(0, 0.01)) for prompt, value in values.items()}
        )
    for part in PARTS:
        for score in getattr(copy, part).values():
            if score.value is not None:
                score.value += float(shift.normal(0, 0.01))
    return copy


if __name__ == "__main__":
    main()
