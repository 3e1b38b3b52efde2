"""The sample store: every image is made once and scored many times.

    <root>/<suite>/<method>-<key>/key.json          what the key was made of
                                  fit.safetensors   what the method learned (with fit.json: seconds and evaluations)
                                  00000-<content>.parquet     a shard: prompt, seed, PNG bytes, one row an image
                                  features/<extractor>/00000-<content>.npy

A shard is written under a temporary name and renamed: it is there and whole, or it is not there. It is the unit of resume.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bench.atomic import write_atomically
from bench.digests import digest_of
from bench.errors import UserError, one_line

SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("png", pa.binary()),
        ("sha256", pa.string()),
        ("method", pa.string()),
        ("facts", pa.string()),  # JSON: what the method reported of this image
    ]
)
FORMAT = 2  # of the shards; part of every store's key


@dataclass(frozen=True)
class SampleKey:
    """One image inside a store: its prompt and its own seed."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Place:
    """Where an image lies: shard name and row."""

    shard: str
    row: int


class SampleStore:
    """The images of one method under one protocol. `identity` is everything that decides a picture besides prompt and seed."""

    def __init__(self, root: Path, suite: str, method: str, identity: dict[str, Any]) -> None:
        self.method = method
        self.folder = root / suite / f"{method}-{digest_of(identity | {'format': FORMAT})[:16]}"
        self._identity = identity
        self._index: dict[SampleKey, Place] = {}
        self.refresh()

    def prepare(self) -> None:
        """Make the folder, so that one that cannot be written is noticed before anything is sampled."""
        write_atomically(self.folder / "key.json", json.dumps(self._identity, indent=1, sort_keys=True).encode())

    def refresh(self) -> None:
        """Take in the shards that other processes have written meanwhile."""
        known = {place.shard for place in self._index.values()}
        for shard in self.shards():
            if shard.stem not in known:
                self._add_to_index(shard.stem, self._read(shard, ["prompt", "seed"]))

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: SampleKey) -> bool:
        return key in self._index

    def place(self, key: SampleKey) -> Place:
        return self._index[key]

    def missing(self, keys: Iterable[SampleKey]) -> list[SampleKey]:
        """The keys that are not stored yet, each once, in the order given."""
        return [key for key in dict.fromkeys(keys) if key not in self._index]

    def append(self, keys: Sequence[SampleKey], pictures: np.ndarray, facts: Sequence[dict[str, float]] | None = None) -> None:
        """Store pictures, uint8 `[n, H, W, 3]`, as one new shard, and beside each what its method reported. A picture that is there stays as it is."""
        new = [row for row, key in enumerate(keys) if key not in self._index]
        if not new:
            return
        keys, pictures, facts = [keys[row] for row in new], pictures[new], [facts[row] for row in new] if facts else None
        encoded = [encode_png(picture) for picture in pictures]
        table = pa.table(
            {
                "prompt": [key.prompt for key in keys],
                "seed": [key.seed for key in keys],
                "png": encoded,
                "sha256": [hashlib.sha256(png).hexdigest() for png in encoded],
                "method": [self.method] * len(keys),
                "facts": [json.dumps(fact, sort_keys=True) for fact in facts or [{}] * len(keys)],
            },
            schema=SCHEMA,
        )
        # The content is part of the name: two processes cannot overwrite each other, and features kept under it fit it.
        number = max((int(shard.stem.partition("-")[0]) for shard in self.shards()), default=-1) + 1
        name = f"{number:05d}-{digest_of(table.drop_columns('png').to_pydict())[:12]}"
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="none")
        write_atomically(self.folder / f"{name}.parquet", buffer.getvalue())
        self._add_to_index(name, table)

    def png(self, keys: Sequence[SampleKey]) -> list[bytes]:
        """The PNG files of stored images, in the order of `keys`; each shard is read once."""
        return self._gather(keys, lambda shard: self._read(shard, ["png", "sha256"]), _checked_png)

    def pictures(self, keys: Sequence[SampleKey]) -> list[np.ndarray]:
        """Stored images as uint8 `[H, W, 3]`."""
        return [decode_png(png) for png in self.png(keys)]

    def facts(self, keys: Sequence[SampleKey]) -> list[dict[str, float]]:
        """What the method reported of stored images, by name."""
        return self._gather(keys, lambda shard: self._read(shard, ["facts"]), lambda table, row, _: json.loads(table["facts"][row].as_py()))

    def features(self, keys: Sequence[SampleKey], extractor: str, extract: Callable[[list[np.ndarray]], np.ndarray]) -> np.ndarray:
        """Features `[n, d]` of stored images; extracted a whole shard at a time and kept beside it, row for row."""
        folder = self.folder / "features" / extractor

        def rows_of(shard: Path) -> np.ndarray:
            cached = folder / f"{shard.stem}.npy"
            if not cached.exists():
                table = self._read(shard, ["png", "sha256"])
                values = extract([decode_png(_checked_png(table, row, shard)) for row in range(table.num_rows)])
                buffer = io.BytesIO()
                np.save(buffer, values.astype(np.float32), allow_pickle=False)
                write_atomically(cached, buffer.getvalue())
            try:
                return np.asarray(np.load(cached, allow_pickle=False))
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"cached features {cached} are unreadable: {one_line(error)}; delete the file and repeat the command") from error

        return np.stack(self._gather(keys, rows_of, lambda values, row, _: values[row]))

    def _gather(self, keys: Sequence[SampleKey], load: Callable[[Path], Any], pick: Callable[[Any, int, Path], Any]) -> list[Any]:
        places = [self._index[key] for key in keys]
        result: list[Any] = [None] * len(places)
        by_shard: dict[str, list[int]] = {}
        for position, place in enumerate(places):
            by_shard.setdefault(place.shard, []).append(position)
        for shard, positions in by_shard.items():
            path = self.folder / f"{shard}.parquet"
            content = load(path)
            for position in positions:
                result[position] = pick(content, places[position].row, path)
        return result

    def _add_to_index(self, shard: str, table: pa.Table) -> None:
        for row, (prompt, seed) in enumerate(zip(table["prompt"].to_pylist(), table["seed"].to_pylist(), strict=True)):
            self._index.setdefault(SampleKey(prompt, seed), Place(shard, row))

    def _read(self, shard: Path, columns: list[str]) -> pa.Table:
        try:
            return pq.read_table(shard, columns=columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(_corrupt(shard, one_line(error)[:120])) from error


def _checked_png(table: pa.Table, row: int, shard: Path) -> bytes:
    png = bytes(table["png"][row].as_py())
    if hashlib.sha256(png).hexdigest() != table["sha256"][row].as_py():
        raise UserError(_corrupt(shard, f"the picture in row {row} does not match its sha256"))
    return png


def _corrupt(shard: Path, why: str) -> str:
    return f"shard {shard} is corrupt ({why}): delete it and repeat the command; only its images are made again"


def encode_png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def pixel_digest(picture: np.ndarray) -> str:
    """16 hex digits of sha256 over the shape and the pixels of a picture, uint8 `[H, W, 3]`: the same however it was compressed."""
    return hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()[:16]


def decode_png(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 `[H, W, 3]`. Raises `UserError` when it is missing, truncated or no picture."""
    try:
        return decode_png(path.read_bytes())
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"picture {path} cannot be read: {one_line(error)[:120]}") from error
