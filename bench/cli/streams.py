"""Standard output and standard error that cannot stop a command.

A reader that goes away (`bench run ... | head -1`), a terminal that does not speak UTF-8, and a
stream that was closed before Python started must not cost a complete run its exit code, nor a run
under way its life: progress goes to standard error.

What commands print holds texts of strangers: licences and groups of suites, facts of records. Here
is where a terminal could take them for orders, whichever command forgot it.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from bench.base.errors import UserError

# What a terminal would take for more than a text: control characters, and changes of direction.
# Ours are colours, and on standard error what draws and moves bars of progress.
COLOURS = r"\x1b\[[0-9;]*m"
ORDERS = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
IN_TEXTS = re.compile(f"({COLOURS})|{ORDERS}")
IN_PROGRESS = re.compile(rf"({COLOURS}|\x1b\[(?:\d*[AB]|2K|\?25[lh])|\r)|{ORDERS}")


def _as_escape(found: re.Match[str]) -> str:
    """An order as its escape, which JSON understands too; what is ours as it is."""
    return found[1] or f"\\u{ord(found[0]):04x}"


class ForgivingStream:
    """A text stream that goes on into the void once it cannot be written any more, and that gives
    a terminal no orders of strangers: these are written as `\\u001b`.

    A reader that went away is no failure. Where `needed`, any other reason, such as a full disk,
    raises `UserError` once. Everything but writing is left to the stream itself.
    """

    def __init__(self, stream: IO[str], needed: bool) -> None:
        self.stream = stream
        self.needed = needed
        self.orders = IN_TEXTS if needed else IN_PROGRESS

    def write(self, text: str) -> int:
        try:
            return self.stream.write(self.orders.sub(_as_escape, text))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _give_up(self, error: OSError) -> None:
        """Let the descriptor lead nowhere, so that what is buffered and what follows is dropped,
        also by Python itself at its end.
        """
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        if self.needed and not isinstance(error, BrokenPipeError):
            raise UserError(f"standard output cannot be written: {error.strerror}") from error


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Make standard output and standard error forgiving for the time of the block."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _forgiving(sys.stdout, True), _forgiving(sys.stderr, False)
    try:
        yield
    finally:
        with suppress(UserError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Take the descriptors 0 to 2 where they are closed; the next file that is opened would get
    one of them, and whatever is printed would be written into that file.
    """
    if os.name != "posix":
        return
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return


def _forgiving(stream: IO[str] | None, needed: bool) -> Any:
    if stream is None:  # Python found it closed
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if isinstance(stream, io.TextIOWrapper):
        with suppress(ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")
    return ForgivingStream(stream, needed)
