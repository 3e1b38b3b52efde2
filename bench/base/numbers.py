"""Which numbers a user may give: those that records and computations can hold."""

from __future__ import annotations

import math

LARGEST_INTEGER = 2**63 - 1  # torch, NumPy and Arrow hold no larger ones


def unusable_number(value: object) -> str | None:
    """What a float or an integer must be and is not, to follow the name of an option or parameter.

    None for a number that can be used, and for everything that is no number.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return f"must lie between -{LARGEST_INTEGER} and {LARGEST_INTEGER}"
    return None
