"""Tables as CSV, and facts as JSON can hold them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

DECIMALS = 8  # of numbers in the CSV tables


def csv_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A table of at least one row with its header; None and NaN become empty cells."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        plain = finite(row)
        writer.writerow(
            {
                key: round(value, DECIMALS) if isinstance(value, float) else value
                for key, value in plain.items()
            }
        )
    return stream.getvalue().encode()


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, and lists for tuples."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
