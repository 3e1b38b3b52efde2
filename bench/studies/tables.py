"""The tables of an analysis as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.base.files import write_atomically

DECIMALS = 8  # of numbers


def csv_table(rows: Sequence[dict[str, Any]]) -> bytes:
    """A table of at least one row with its header; None becomes an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {
            key: round(value, DECIMALS) if isinstance(value, float) else value
            for key, value in row.items()
        }
        for row in rows
    )
    return stream.getvalue().encode()


def written(path: Path, content: bytes) -> Path:
    """The path of a file, once it has this content. Raises `UserError` where it cannot be
    written.
    """
    write_atomically(path, content)
    return path
