"""The tables of an analysis as CSV files, and its facts as JSON can hold them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.base.csv_cells import csv_cell
from bench.base.files import write_atomically

DECIMALS = 8  # of numbers


def csv_table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A table of at least one row with its header; None and NaN become empty cells."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {
            key: round(value, DECIMALS) if isinstance(value, float) else csv_cell(value)
            for key, value in finite(row).items()
        }
        for row in rows
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


def written(path: Path, content: bytes) -> Path:
    """The path of a file, once it has this content. Raises `UserError` where it cannot be
    written.
    """
    write_atomically(path, content)
    return path
