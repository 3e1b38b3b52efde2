"""A Python process of its own, for what may be slow, print, hang or crash: imports of torch and of
strangers' modules.

The child answers line by line, so what it told before it ended, or before its time was over, is
known.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def ask_child(
    module: str, arguments: Sequence[str], seconds: float
) -> tuple[list[bytes], int | None]:
    """The lines that `python -m module` told within so many seconds, and its exit code; None for
    one that was stopped.
    """
    # the child finds what this process finds
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    }
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
        )
        return done.stdout.splitlines(), done.returncode
    except subprocess.TimeoutExpired as stopped:
        return (stopped.stdout or b"").splitlines(), None


@contextmanager
def answering() -> Iterator[IO[str]]:
    """In the child: where standard output was; what libraries print goes to standard error.

    The process ends with the block.
    """
    with os.fdopen(os.dup(1), "w") as told:
        os.dup2(2, 1)
        yield told
    os._exit(0)  # without waiting for threads that a library may have started


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
