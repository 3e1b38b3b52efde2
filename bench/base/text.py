"""How sizes, durations and summaries are written for people."""

from __future__ import annotations

import re


def size_text(count: float) -> str:
    """A number of bytes as bytes, KiB, MiB or GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} bytes"


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a docstring, each on one line, wherever the source breaks it."""
    parts = re.split(r"\n\s*\n", docstring.strip())
    return [" ".join(part.split()) for part in parts]


def duration_text(seconds: float) -> str:
    """Seconds below ten minutes as seconds, and longer ones as hours."""
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"


def rate_text(share: float) -> str:
    """A share of rare events as a percentage: two digits below ten, whole numbers above."""
    percentage = 100 * share
    return f"{percentage:.2g} %" if percentage < 9.95 else f"{percentage:.0f} %"
