"""Progress bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

Report = Callable[[str, int, int], None]  # what is done, how much of it is, and how much is to do

LINE_EVERY = 60.0  # seconds between two lines where nobody watches, in the log of a batch job say


def silent(what: str, done: int, total: int) -> None:
    """A progress report that goes nowhere."""


@contextmanager
def reporter() -> Iterator[Report]:
    """A report function that draws one bar for each kind of work, with rate and time left. Where
    standard error is no terminal it writes a line every minute.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        bars: dict[str, TaskID] = {}
        told = monotonic()

        def report(what: str, done: int, total: int) -> None:
            nonlocal told
            now = monotonic()
            if not progress.console.is_terminal and now - told > LINE_EVERY:
                told = now
                progress.console.print(f"{what}: {done:,} of {total:,}", highlight=False)
            name = what.split(" ")[0]
            if name not in bars:
                bars[name] = progress.add_task(what, total=total)
            progress.update(bars[name], description=what, completed=done, total=total)

        yield report
