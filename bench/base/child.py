"""A Python process of its own, for work that may be slow, print, hang or crash: importing torch or
modules of plug-ins.

The child answers line by line, so the parent has every line that was written before the child
ended or was stopped.
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
    """Run `python -m module` with some arguments for at most `seconds`.

    Returns the lines that it wrote to standard output, and its exit code, which is None when it was
    stopped because its time was over.
    """
    # the child imports from where this process imports
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
    """In the child: a stream to the parent. What libraries print goes to standard error meanwhile.

    The process ends with the block.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers
    os._exit(0)  # without waiting for threads that a library may have started


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
