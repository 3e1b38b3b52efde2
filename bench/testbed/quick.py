"""How long a first answer takes: `none` on the suite `testbed-quick`, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.base.errors import UserError

THREADS = 2


def quick_seconds() -> float:
    """Seconds on two threads, with an empty store, from the command to its record.

    Raises `UserError` when the run fails.
    """
    command = [sys.executable, "-m", "bench", "run", "--method", "none", "--suite", "testbed-quick"]
    with tempfile.TemporaryDirectory() as folder:
        places = [
            "--records",
            str(Path(folder) / "records"),
            "--store",
            str(Path(folder) / "store"),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
        began = time.perf_counter()
        done = subprocess.run(
            [*command, *places], env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise UserError(f"`bench run --suite testbed-quick` failed: {done.stderr.strip()[-300:]}")
    return round(seconds, 1)
