"""What the campaigns share: the tiny suite in a folder of its own, and `bench` in child processes
that begin in an instant, because they are copies of one that has imported everything.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = ["run", "--suite", "suite/tiny.toml", "--records", "records", "--store", "store"]
WAITING = (signal.SIGINT, signal.SIGTERM)
HANGS = 30.0  # seconds after which a command counts as hanging, if it had no more to do


@dataclass
class Child:
    """A `bench` under way; what it wrote to standard error is in `errors`."""

    pid: int
    errors: Path

    def wait(self, seconds: float) -> int | None:
        """The exit code, negative for a signal; None when it did not end in time, and is killed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.kill(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        """What it wrote to standard error."""
        return self.errors.read_text(errors="replace")


def bench(arguments: list[str], folder: Path, before: Callable[[], None] = lambda: None) -> Child:
    """Start `bench` with arguments in a folder. `before` is called in the child, first."""
    errors = folder / "stderr.txt"
    # What is sent before `main` begins waits for it: this beginning is no part of `bench`.
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITING)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITING)
        return Child(pid, errors)
    code = 70
    try:
        os.chdir(folder)
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            opened = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            os.dup2(opened, number)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        _renew_threads()
        before()
        sys.argv = ["bench", *arguments]
        from bench.cli import main

        # The first thing that `main` asks for, so that what waited is answered inside it.
        asked = signal.getsignal

        def unblocking(number: int) -> Any:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITING)
            return asked(number)

        main.signal.getsignal = unblocking
        main.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _renew_threads() -> None:
    """Let torch make its pool of threads anew, which a child does not inherit, while there is one
    thread: of two that ask first at once (transformers loads weights in several) one would find
    none, and end as "Invalid thread pool!". A `bench` that is no copy has no such moment.
    """
    import torch

    torch.set_num_threads(1)


def import_everything() -> None:
    """What every child needs, imported once."""
    import torch

    torch.set_num_threads(1)
    import bench.assets.fetch
    import bench.auditing.audit
    import bench.cli.main
    import bench.diffusion.model
    import bench.leaderboard.leaderboard
    import bench.running.run
    import bench.studies.calibration
    import bench.studies.detection
    import bench.studies.experiments
    import bench.studies.finetune.train
    import bench.studies.sweep
    import bench.studies.tuning
    import bench.testbed.build
    import bench.testbed.tiny  # noqa: F401


def unsound(child: Child) -> str:
    """What is wrong with what a command said; empty when it is what a user may see."""
    said = child.said()
    for word in ("Traceback", "bench: unexpected "):
        if word in said:
            return said.strip().splitlines()[-1][:300]
    return ""


def scores_of(records: Path) -> dict[str, Any]:
    """The scores of the one record below a folder, without costs."""
    from bench.records.record import load_records

    found, damaged = load_records(records)
    assert not damaged, damaged[0].why
    (record,) = found
    assert record.status == "complete", record.status
    return {name: score.value for name, score in (record.scores | record.attacks).items()}


def begun(folder: Path, command: list[str], before: Callable[[], None] = lambda: None) -> float:
    """Carry a command out undisturbed. Returns the seconds that it takes; ends the campaign where
    it does not work.
    """
    start = time.monotonic()
    child = bench(command, folder, before)
    if child.wait(10 * HANGS) != 0:
        sys.exit(f"the undisturbed command fails: {child.said()}")
    return time.monotonic() - start


def report(campaign: str, tried: int, failures: list[str]) -> int:
    """Print what was tried and passed; the exit code of a campaign."""
    for failure in failures[:20]:
        print(f"  {failure}")
    print(f"{campaign}: tried {tried}, passed {tried - len(failures)}")
    return 1 if failures else 0


def generator(seed: int) -> random.Random:
    return random.Random(f"campaign {seed}")
