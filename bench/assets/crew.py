"""The threads that fetch: what they share, how they stop together, and the lock that keeps two
commands out of one folder.
"""

from __future__ import annotations

import queue
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench.base.errors import UserError, one_line

try:
    import fcntl
except ImportError:  # Windows: two commands at once in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
MIB = 1 << 20
LONGEST = 86400  # seconds that a server may be silent; sockets refuse infinity


class Stopped(Exception):
    """The work is to end; nothing more is written."""


@dataclass
class Crew:
    """What all downloads of one command share."""

    workers: int
    timeout: float
    retries: int
    offline: bool
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    come: int = 0  # bytes that came, or were there already when their download began
    # bytes of every download whose size is known
    expected: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"at least 1 worker is needed, not {self.workers}")
        if not 0 < self.timeout <= LONGEST or self.retries < 0:
            raise UserError(
                f"a timeout must be above 0 and at most {LONGEST} s, and retries at least 0, not"
                f" {self.timeout:g} and {self.retries}"
            )
        # Of the standard handlers, only these: a redirect cannot lead to a file of this machine or
        # to FTP.
        self.opener = urllib.request.OpenerDirector()
        handlers = (
            "ProxyHandler",
            "UnknownHandler",
            "HTTPHandler",
            "HTTPSHandler",
            "HTTPDefaultErrorHandler",
            "HTTPRedirectHandler",
            "HTTPErrorProcessor",
        )
        for handler in handlers:
            self.opener.add_handler(getattr(urllib.request, handler)())

    def check(self) -> None:
        """Raise `Stopped` once the work is to end."""
        if self.stop.is_set():
            raise Stopped

    def count(self, more: int) -> None:
        """Add bytes that came."""
        with self.lock:
            self.come += more

    def run(
        self, tasks: Sequence[Callable[[], T]], tick: Callable[[], None]
    ) -> Generator[tuple[int, T], None, None]:
        """Results as they come, each with its task's index.

        An error of one task ends all. `tick` is called a few times a second.
        """
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        for index in range(len(tasks)):
            todo.put(index)

        def work() -> None:
            while not self.stop.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, tasks[index](), None))
                except BaseException as error:
                    done.put((index, None, error))

        # Daemons: one that waits for a silent server must not hold up Ctrl-C. After `stop` they
        # write nothing.
        threads = [
            threading.Thread(target=work, daemon=True) for _ in range(min(self.workers, len(tasks)))
        ]
        for thread in threads:
            thread.start()
        left, shown = len(tasks), 0.0
        try:
            while left:
                if time.monotonic() - shown > 0.2:
                    tick()
                    shown = time.monotonic()
                try:
                    index, result, error = done.get(timeout=0.2)
                except queue.Empty:
                    continue
                if error is not None:
                    raise error
                left -= 1
                yield index, result
        finally:
            self.stop.set()
            until = time.monotonic() + 2
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            tick()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two commands that write the same part files would mix them.

    Raises `UserError` when another has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {one_line(error)}") from error
    with stream:
        try:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another command is fetching into {folder}: wait until it ends, or choose another"
                " folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
