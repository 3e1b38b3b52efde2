"""One shard: a Parquet file of images, one row each, with what is read from it; and pictures as PNG
files.

A row whose picture was dropped has no `png`, and `pixels` instead: the digest of the picture's
pixels. A shard without such rows has no such column. The file's metadata say what made its images:
device, packages, precision, batch size.

A store may come with a stranger's record. Parquet can say much in few bytes (compressed pages, one
value that stands for many), so what a shard becomes in memory is judged before and while it is
read.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.base import limits
from bench.base.arrays import array_of
from bench.base.digests import digest_of
from bench.base.errors import UserError, one_line
from bench.base.pictures import encode_png, pixel_digest
from bench.store.folders import Folder

SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("png", pa.binary()),
        ("sha256", pa.string()),
        ("method", pa.string()),
        ("facts", pa.string()),  # JSON: what the method reported of this image
        ("evaluations", pa.float64()),  # of the model: its share of those of its batch
    ]
)
PIXELS = pa.field("pixels", pa.string())  # only where a picture was dropped
KNOWN = {field.name: field.type for field in (*SCHEMA, PIXELS)}
NEEDED = ("prompt", "seed", "png", "sha256")  # which every shard has had from the first
ENDING = ".parquet"
MADE_BY = b"made_by"  # the key of JSON in the metadata
UNNAMED = ("png", "evaluations")  # columns that are no part of a shard's name


def as_table(
    method: str,
    keys: Sequence[tuple[str, int]],
    pictures: Sequence[np.ndarray],
    facts: Sequence[dict[str, float]],
    evaluations: Sequence[float | None],
    dropped: Sequence[bool],
    made_by: Mapping[str, Any],
) -> pa.Table:
    """Images as a table: prompt and seed, the picture (uint8 `[H, W, 3]`) unless it is dropped,
    what the method reported, evaluations of the model; and what made them all.
    """
    encoded = [encode_png(picture) for picture in pictures]
    columns = {
        "prompt": [prompt for prompt, _ in keys],
        "seed": [seed for _, seed in keys],
        "png": [None if drop else png for png, drop in zip(encoded, dropped, strict=True)],
        "sha256": [hashlib.sha256(png).hexdigest() for png in encoded],
        "method": [method] * len(keys),
        "facts": [json.dumps(fact, sort_keys=True) for fact in facts],
        "evaluations": list(evaluations),
    }
    schema = SCHEMA.with_metadata({MADE_BY: json.dumps(made_by, sort_keys=True)})
    if not any(dropped):
        return pa.table(columns, schema=schema)
    columns["pixels"] = [
        pixel_digest(picture) if drop else None
        for picture, drop in zip(pictures, dropped, strict=True)
    ]
    return pa.table(columns, schema=schema.append(PIXELS))


def name_of(table: pa.Table, others: Sequence[str]) -> str:
    """A shard's name: the next number after those of `others`, and a digest of its content, so that
    two processes cannot overwrite each other's, and features kept under a name belong to its
    content.
    """
    numbers = (
        int(other.partition("-")[0]) for other in others if other.partition("-")[0].isdecimal()
    )
    content = digest_of(table.drop_columns(list(UNNAMED)).to_pydict())[:12]
    return f"{max(numbers, default=-1) + 1:05d}-{content}"


def as_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none")
    return buffer.getvalue()


def read_columns(files: Folder, shard: str, columns: Sequence[str]) -> pa.Table:
    """Those of the asked columns that a shard has.

    Raises `UserError` for a shard that is damaged, that `as_bytes` cannot have written, or that
    becomes more in memory than `limits` allow.
    """
    try:
        with pq.ParquetFile(files.opened(f"{shard}{ENDING}")) as file:
            schema = _schema_of(file, columns)
            parts, size, images = [], 0, 0
            for part in file.iter_batches(_at_once(file), columns=schema.names, use_threads=False):
                size, images = size + part.nbytes, images + part.num_rows
                _refuse_too_much(size, images)
                parts.append(part)
            return pa.Table.from_batches(parts, schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(corrupt(files, shard, one_line(error)[:120])) from error


def _schema_of(file: pq.ParquetFile, columns: Sequence[str]) -> pa.Schema:
    """The asked columns that a file has. Raises `ValueError` for one of another type (a list, say,
    may hold any number of values in one row), for one that stands there twice, and where one is
    missing that every shard has.
    """
    fields = [field for field in file.schema_arrow if field.name in columns]
    names = [field.name for field in fields]
    for name in columns:
        if names.count(name) > 1 or (name in NEEDED and name not in names):
            raise ValueError(f"it has {names.count(name)} columns {name}")
    for field in fields:
        if field.type != KNOWN.get(field.name):
            raise ValueError(f"its column {field.name} is of the type {field.type}")
    return pa.schema(fields)


def _at_once(file: pq.ParquetFile) -> int:
    """How many rows may be read at once. Raises `ValueError` for a file that is too large, and for
    one with compressed columns: as many bytes as it likes may become of each.
    """
    facts = file.metadata
    chunks = [
        facts.row_group(group).column(column)
        for group in range(facts.num_row_groups)
        for column in range(facts.num_columns)
    ]
    for chunk in chunks:
        if chunk.compression != "UNCOMPRESSED":
            raise ValueError(f"its column {chunk.path_in_schema} is compressed; none of ours is")
    # What is not compressed takes the bytes that are read, whatever else the file states of it.
    size = sum(
        max(0, chunk.total_compressed_size, chunk.total_uncompressed_size) for chunk in chunks
    )
    _refuse_too_much(size, facts.num_rows)
    # A row may repeat a value that stands in the file once, but is no larger than all of it.
    return min(limits.SHARD_IMAGES, max(1, limits.SHARD_BYTES // max(1, size)))


def _refuse_too_much(size: int, images: int) -> None:
    if size > limits.SHARD_BYTES or images > limits.SHARD_IMAGES:
        raise ValueError(
            f"it has {size:,} bytes and {images:,} images; {limits.SHARD_BYTES:,} and"
            f" {limits.SHARD_IMAGES:,} are allowed"
        )


def made_by(files: Folder, shard: str) -> dict[str, Any]:
    """What made the images of a shard. Raises `UserError` for a damaged shard."""
    try:
        with pq.ParquetFile(files.opened(f"{shard}{ENDING}")) as file:
            found = json.loads((file.schema_arrow.metadata or {}).get(MADE_BY, b"{}"))
        if not isinstance(found, dict):
            raise ValueError(f"{MADE_BY.decode()} is no JSON object")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(corrupt(files, shard, one_line(error)[:120])) from error
    return found


def checked_png(files: Folder, shard: str, table: pa.Table, row: int) -> bytes:
    """The PNG in a row. Raises `UserError` where it was dropped or is not the one that was
    stored.
    """
    png = table["png"][row].as_py()
    if png is None:
        raise UserError(
            f"the picture in row {row} of shard {files}/{shard}{ENDING} was dropped once it had its"
            " features; repeat the run with --keep-images all to have it"
        )
    if hashlib.sha256(png).hexdigest() != table["sha256"][row].as_py():
        raise UserError(
            corrupt(files, shard, f"the picture in row {row} does not match its sha256")
        )
    return bytes(png)


def corrupt(files: Folder, shard: str, why: str) -> str:
    return (
        f"shard {files}/{shard}{ENDING} is corrupt ({why}): delete it and repeat the command; only"
        " its images are made again"
    )


def read_features(files: Folder, name: str, last: int) -> np.ndarray | None:
    """Features `[rows, d]` of a shard; None for a damaged file and for one that has no row `last`,
    which is named on standard error.
    """
    try:
        values = array_of(files.read(name))
        if values.ndim == 0 or len(values) <= last:
            raise ValueError(f"row {last} is wanted of features of shape {values.shape}")
    except (UserError, OSError, ValueError, EOFError) as error:
        print(
            f"bench: features {files}/{name} are damaged and are made again: {one_line(error)}",
            file=sys.stderr,
        )
        return None
    return values


def extracted(extract: Any, extractor: str, pictures: list[np.ndarray]) -> np.ndarray:
    """Features of pictures, one row each. Raises `UserError` when there are more or fewer rows."""
    values = np.asarray(extract(pictures))
    if values.ndim == 0 or len(values) != len(pictures):
        raise UserError(
            f"extractor {extractor} gave features of shape {values.shape} for {len(pictures)}"
            " pictures; give one row a picture"
        )
    return values
