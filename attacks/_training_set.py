"""The pictures that a model was trained on, one batch at a time:

Parquet shards, a folder of picture files or a list of them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import UserError, centred_square, decode_image, has_picture_suffix, one_line, read_image

COLUMNS = ("png", "image", "image_bytes")  # the first that a shard has holds its pictures
MEMORY = 2**26  # bytes of a batch, decoded or encoded
BATCH = 1024  # pictures of a batch at most
ROWS = 32  # of a shard read at a time, and pictures decoded by one job

# id; what to call it in an error; the encoded picture, or its file
Item = tuple[str, str, bytes | Path]


class TrainingSet:
    """Training pictures at the generator's size, in a fixed order, read anew by every iteration and
    never all in memory.

    A batch is `(ids, pictures)`: pictures uint8 `[b, side, side, 3]`, read as RGB; an id is the
    column `id` where a shard has one, else `<file name>:<row>`, and of a picture file its name.
    `policy` says how pictures of other sizes are brought to that size. `count` is the number of
    pictures, known once they have all been read. Iterating raises `UserError` for an unreadable
    shard or picture, naming it, for a shard without pictures and for a set without any.
    """

    def __init__(self, files: Sequence[tuple[str, Path]], side: int) -> None:
        """`files`: names for ids and errors, and where they lie; those that end in .parquet are
        shards. Order is kept.
        """
        self.files = tuple(files)
        self.side = side
        self.batch = max(1, min(BATCH, MEMORY // (side * side * 3)))
        self.count: int | None = None

    @classmethod
    def open(cls, path_or_files: Path | Sequence[Path], side: int) -> TrainingSet:
        """A folder (its Parquet shards if it has some, else its picture files; with subfolders,
        sorted by name), one file, or a list of files.
        """
        if not isinstance(path_or_files, Path):
            files = [(path.name, path) for path in path_or_files]
        elif path_or_files.is_dir():
            inside = sorted(
                path
                for path in path_or_files.rglob("*")
                if path.is_file() and not path.name.startswith(".")
            )
            shards = [path for path in inside if path.suffix == ".parquet"]
            chosen = shards or [path for path in inside if has_picture_suffix(path)]
            files = [(path.relative_to(path_or_files).as_posix(), path) for path in chosen]
        else:
            files = [(path_or_files.name, path_or_files)]
        if not files:
            where = f"in {path_or_files}" if isinstance(path_or_files, Path) else "in the list"
            raise UserError(f"no training pictures {where}: neither *.parquet nor picture files")
        return cls(files, side)

    @property
    def policy(self) -> str:
        return (
            f"short side to {self.side} pixels (PIL bicubic, 8 bits, long side rounded down),"
            " centre crop; RGB pictures of that size as they are"
        )

    def __iter__(self) -> Iterator[tuple[list[str], np.ndarray]]:
        pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        ahead: deque[tuple[list[str], np.ndarray, list[Future[None]]]] = deque()
        count = 0
        try:
            for group in self._groups():
                ahead.append(self._begin(pool, group))
                count += len(group)
                if len(ahead) > 1:  # the next batch is decoded while this one is used
                    yield _finished(*ahead.popleft())
            while ahead:
                yield _finished(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
        if count == 0:
            raise UserError(
                "no training pictures in"
                f" {self.files[0][0]}{' and the other shards' if len(self.files) > 1 else ''}: no"
                " rows"
            )
        self.count = count

    def _groups(self) -> Iterator[list[Item]]:
        group: list[Item] = []
        encoded = 0
        for name, path in self.files:
            for item in (
                _rows(name, path)
                if path.suffix == ".parquet"
                else [(name, f"picture {path}", path)]
            ):
                group.append(item)
                encoded += len(item[2]) if isinstance(item[2], bytes) else 0
                if len(group) == self.batch or encoded >= MEMORY:
                    yield group
                    group, encoded = [], 0
        if group:
            yield group

    def _begin(
        self, pool: ThreadPoolExecutor, group: list[Item]
    ) -> tuple[list[str], np.ndarray, list[Future[None]]]:
        pictures = np.empty((len(group), self.side, self.side, 3), dtype=np.uint8)

        def fill(start: int) -> None:
            for row, (_, where, content) in enumerate(group[start : start + ROWS], start):
                pictures[row] = _decoded(content, where, self.side)

        return (
            [item[0] for item in group],
            pictures,
            [pool.submit(fill, start) for start in range(0, len(group), ROWS)],
        )


def _finished(
    ids: list[str], pictures: np.ndarray, jobs: list[Future[None]]
) -> tuple[list[str], np.ndarray]:
    for job in jobs:  # in order, so that of several unreadable pictures the first is named
        job.result()
    return ids, pictures


def _rows(name: str, path: Path) -> Iterator[Item]:
    try:
        # Without this a shard that is one row group, as most are, would be read whole.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        schema = file.schema_arrow
        column = _picture_column(name, schema)
        columns = [column, *(["id"] if "id" in schema.names else [])]
        row = 0
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            ids = batch.column("id").to_pylist() if "id" in columns else [None] * batch.num_rows
            for given, value in zip(ids, batch.column(column).to_pylist(), strict=True):
                content = value["bytes"] if isinstance(value, dict) else value
                where = f"row {row} of shard {name}"
                if content is None:
                    raise UserError(f"{where} has no picture")
                yield f"{name}:{row}" if given is None else str(given), where, content
                row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"shard {name} cannot be read: {one_line(error)[:120]}") from error


def _picture_column(name: str, schema: pa.Schema) -> str:
    column = next((column for column in COLUMNS if column in schema.names), None)
    if column is None:
        raise UserError(
            f"shard {name} has no column of pictures ({', '.join(COLUMNS)}); it has:"
            f" {', '.join(schema.names) or 'none'}"
        )
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"the column '{column}' of shard {name} holds {schema.field(column).type} and not the"
            " bytes of picture files"
        )
    return column


def _decoded(content: bytes | Path, where: str, side: int) -> np.ndarray:
    try:
        image = read_image(content) if isinstance(content, Path) else decode_image(content)[0]
        return centred_square(image, side)
    except (UserError, ValueError) as error:
        raise UserError(f"{where} is no readable picture: {one_line(error)[:200]}") from error
