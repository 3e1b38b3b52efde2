"""The errors a user can cause, each one line: what happened, to what, and what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# letters, by their class, that show nothing
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]")


class UserError(Exception):
    """Something the user can put right.

    The command line prints it as one line and exits with code 2.
    """


class UnknownName(UserError):
    """A name that is not known, with what was probably meant and what is known."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        super().__init__(f"unknown {kind} '{name}': {hint}known: {', '.join(names) or 'none'}")


class Unmeasurable(Exception):
    """Raised by a metric that cannot give its numbers; the record keeps `null` and this reason."""


def visible(text: str) -> str:
    """Text on one line that shows what it holds: control, direction and other invisible characters
    as their escapes (`\\u202e`).
    """
    if text.isprintable() and not BLANK.search(text):
        return text
    shown = (
        (
            c
            if c.isprintable() and not BLANK.match(c)
            else " "
            if c.isspace()
            else c.encode("unicode_escape").decode()
        )
        for c in text
    )
    return "".join(shown)


def one_line(error: BaseException, longest: int = 2000) -> str:
    """An exception as one line of text that does nothing to a terminal or a page and does not fill
    it.
    """
    text = visible(" ".join(str(error)[: 4 * longest].split())) or type(error).__name__
    return text if len(text) <= longest else text[:longest] + "…"
