"""What the downloads of one command share: limits, counters, threads and the signal to stop; and
the lock that keeps two commands out of one folder.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench.assets.addresses import Http, Https, Redirects
from bench.base import limits
from bench.base.background import in_background
from bench.base.errors import UserError
from bench.base.locks import Busy, locked

T = TypeVar("T")
MIB = 1 << 20
LONGEST = limits.SILENT_SECONDS  # sockets refuse infinity
TICK = 0.2  # seconds between two reports of progress
GRACE = 2.0  # seconds that downloads have to end after the signal to stop
# Of urllib's standard handlers, only these: a redirect cannot lead to a file of this machine or to
# FTP.
HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    Http,
    Https,
    urllib.request.HTTPDefaultErrorHandler,
    Redirects,
    urllib.request.HTTPErrorProcessor,
)


class Stopped(Exception):
    """The work is to end; nothing more is written."""


@dataclass
class Session:
    """What all downloads of one command share.

    `timeout` is in seconds. Raises `UserError` for limits that make no sense.
    """

    workers: int
    timeout: float
    retries: int
    offline: bool
    private_links: bool = False  # whether links of lists may lead to this machine or its network
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    received: int = 0  # bytes that arrived, or were there already when their download began
    # bytes of every download whose size is known
    expected: dict[str, int] = field(default_factory=dict)

    # by source, the address that answered in the end, where it was another one
    redirected: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"at least 1 worker is needed, not {self.workers}")
        if not 0 < self.timeout <= LONGEST or self.retries < 0:
            raise UserError(
                f"a timeout must be above 0 and at most {LONGEST} s, and retries at least 0, not"
                f" {self.timeout:g} and {self.retries}"
            )
        self.opener = urllib.request.OpenerDirector()
        for handler in HANDLERS:
            self.opener.add_handler(handler())

    def check(self) -> None:
        """Raise `Stopped` once the work is to end."""
        if self.stop.is_set():
            raise Stopped

    def count(self, more: int) -> None:
        """Add bytes that arrived."""
        with self.lock:
            self.received += more

    def run(
        self, tasks: Sequence[Callable[[], T]], tick: Callable[[], None]
    ) -> Generator[tuple[int, T], None, None]:
        """Run the tasks, `workers` at a time; each result as soon as it is there, with its task's
        index.

        An error of one task ends all. `tick` is called a few times a second. However this ends,
        Ctrl-C included, no task writes anything afterwards, and none holds up the program.
        """
        waiting = iter(enumerate(tasks))
        running: dict[Future[T], int] = {}
        next_tick = 0.0
        try:
            while True:
                while len(running) < self.workers and (following := next(waiting, None)):
                    index, task = following
                    running[in_background(task)] = index
                if not running:
                    return
                if time.monotonic() >= next_tick:
                    tick()
                    next_tick = time.monotonic() + TICK
                for future in wait(running, TICK, FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            self.stop.set()
            wait(running, GRACE)
            tick()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: two commands that write the same part files would mix them.

    Raises `UserError` when another command has it, and when the folder cannot be written.
    """
    try:
        with locked(folder, wait=False):
            yield
    except Busy as error:
        raise UserError(
            f"another command is fetching into {folder}: wait until it ends, or choose another"
            " folder"
        ) from error
