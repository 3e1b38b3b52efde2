"""The errors a user can cause, each one line: what happened, to what, and what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# characters that count as letters and show nothing
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]")


class UserError(Exception):
    """Something the user can put right.

    The command line prints it as one line and exits with code 2.
    """


class UnknownName(UserError):
    """A name that is not known. The message says what was probably meant, and which are known."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        super().__init__(f"unknown {kind} '{name}': {hint}known: {', '.join(names) or 'none'}")


class Unmeasurable(Exception):
    """A metric or attack cannot give a number. The record keeps `null` and this reason in its
    place.
    """


def visible(text: str) -> str:
    """The text on one line, with every character that shows nothing (control characters, changes of
    direction) as its escape, such as `\\u202e`.
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


def is_whole(text: str) -> bool:
    """Whether a text has only whole characters, and so can be written into a file. Names of files
    that are no UTF-8 have halves (lone surrogates), and `\\ud800` of JSON is one.
    """
    return text.isascii() or not any("\ud800" <= character < "\ue000" for character in text)


def one_line(error: BaseException, longest: int = 2000) -> str:
    """An exception as one line of at most `longest` characters, safe for a terminal and a page; the
    name of its class where it has no message.
    """
    text = visible(" ".join(str(error)[: 4 * longest].split())) or type(error).__name__
    return text if len(text) <= longest else text[:longest] + "…"
