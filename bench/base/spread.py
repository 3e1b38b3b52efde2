"""The one way to choose a few of many items at even distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly(total: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to `total` - 1, at even distances, in ascending order."""
    count = min(total, most)
    return [i * total // count for i in range(count)]


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """At most `most` of the items at even distances, in their order, so that a short list still
    covers every group. All of them where `most` is None.
    """
    return list(items) if most is None else [items[row] for row in evenly(len(items), most)]
