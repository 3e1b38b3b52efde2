"""The sample store: every image is made once and scored many times.

    <root>/<suite>/<method>-<key>/key.json          what the key was made of
                                  fit.safetensors   what the method learned (with fit.json: seconds
                                                    and evaluations)
                                  00000-<content>.parquet     a shard: prompt, seed, PNG bytes, one
                                                              row an image
                                  features/<extractor>/00000-<content>.npy

The root is a folder or any URL of fsspec (`bench.store.folders`). A shard is there and whole, or it
is not there. It is the unit of resume.

Pictures may be dropped from a shard once their features are kept (`bench.running.images` says
which): features are written first, under the name that the shard will have, then the shard, so that
a row without its picture always has them. Such an image may be made again; then the newer shard has
it too.

On a disk that has locks one process writes at a time, and what another one stored meanwhile is not
stored again, so that all readers find the same picture. On other disks, and behind a URL, two may
store the same image: the shard that comes first by name counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.base.arrays import array_as_bytes
from bench.base.digests import digest_of
from bench.base.errors import UserError
from bench.base.files import write_atomically
from bench.base.pictures import decode_png, encode_png, pixel_digest, read_picture
from bench.store import shards
from bench.store.folders import Root, open_folder
from bench.store.shards import SCHEMA

__all__ = [
    "FORMAT",
    "SCHEMA",
    "Place",
    "SampleKey",
    "SampleStore",
    "decode_png",
    "encode_png",
    "pixel_digest",
    "read_picture",
    "write_atomically",
]

FORMAT = 3  # of the shards; part of every store's key
AT_ONCE = 16  # shards whose keys are read together where every read waits for a network


@dataclass(frozen=True, slots=True)
class SampleKey:
    """One image inside a store: its prompt and its own seed."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image lies: shard name and row."""

    shard: str
    row: int


class SampleStore:
    """The images of one method under one protocol.

    `identity` is everything that decides a picture besides prompt and seed.
    """

    def __init__(self, root: Root, suite: str, method: str, identity: dict[str, Any]) -> None:
        self.method = method
        self.name = f"{method}-{digest_of(identity | {'format': FORMAT})[:16]}"
        self.files = open_folder(root).at(suite).at(self.name)
        self._identity = identity
        # the first row with the picture, or without any picture the newest
        self._index: dict[SampleKey, Place] = {}
        # rows without the picture that an image had before
        self._older: dict[SampleKey, tuple[Place, ...]] = {}
        self._dropped: set[SampleKey] = set()  # those whose picture no shard has
        self._known: set[str] = set()
        # of the older rows, those of the same picture; None: not compared yet
        self._alike: set[tuple[SampleKey, Place]] | None = None
        self.refresh()

    @property
    def folder(self) -> Path:
        """The folder on this machine. Raises `UserError` for a store behind a URL, which `files`
        reads and writes too.
        """
        folder = self.files.local("")
        if folder is None:
            raise UserError(f"{self.files} is no folder of this machine")
        return folder

    def prepare(self) -> None:
        """Make the folder, so that one that cannot be written is noticed before anything is
        sampled.
        """
        self.files.tidy()
        for extractor in self.files.at("features").folders():
            self.files.tidy(f"features/{extractor}")
        key = json.dumps(self._identity, indent=1, sort_keys=True)
        with self.files.alone():  # whatever that can raise, it raises before hours of work
            self.files.write("key.json", key.encode())

    def refresh(self) -> None:
        """Add the shards that other processes have written meanwhile to the index."""
        new = [name for name in self.shard_names() if name not in self._known]

        def keys_of(shard: str) -> pa.Table:
            return shards.read_columns(self.files, shard, ["prompt", "seed", "pixels"])

        if self.files.local("") is not None:
            for shard in new:
                self._add_to_index(shard, keys_of(shard))
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for shard, table in zip(new, pool.map(keys_of, new), strict=True):
                self._add_to_index(shard, table)

    def shard_names(self) -> list[str]:
        """The names of the shards, without ending, oldest first."""
        return [
            name.removesuffix(shards.ENDING)
            for name in self.files.names()
            if name.endswith(shards.ENDING)
        ]

    def shards(self) -> list[Path]:
        """The files of the shards, oldest first, of a store on this machine."""
        return [self.folder / f"{name}{shards.ENDING}" for name in self.shard_names()]

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: SampleKey) -> bool:
        return key in self._index

    def place(self, key: SampleKey) -> Place:
        """Where an image lies, with its picture if any shard has it."""
        return self._index[key]

    def missing(self, keys: Iterable[SampleKey]) -> list[SampleKey]:
        """The keys that are not stored yet, each once, in the order given."""
        return [key for key in dict.fromkeys(keys) if key not in self._index]

    @property
    def dropped(self) -> Set[SampleKey]:
        """The stored images whose picture was dropped, and not made again since."""
        return self._dropped

    def append(
        self,
        keys: Sequence[SampleKey],
        pictures: Sequence[np.ndarray] | np.ndarray,
        facts: Sequence[dict[str, float]] | None = None,
        features: Mapping[str, np.ndarray] | None = None,
        dropped: Collection[SampleKey] = (),
        evaluations: Sequence[float] | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        """Store pictures, uint8 `[n, H, W, 3]`, as one new shard, and beside each what its method
        reported and the evaluations of the model that it took. A picture that is there, or that
        another process has stored meanwhile, stays as it is.

        `features`: those of extractors, `[n, d]` by fingerprint, kept beside the shard. `dropped`:
        of the keys, those whose picture is not kept. `made_by`: device, packages and the like.
        """
        with self.files.alone():
            self.refresh()
            self._append(keys, pictures, facts, features, dropped, evaluations, made_by or {})

    def _append(
        self,
        keys: Sequence[SampleKey],
        pictures: Sequence[np.ndarray] | np.ndarray,
        facts: Sequence[dict[str, float]] | None,
        features: Mapping[str, np.ndarray] | None,
        dropped: Collection[SampleKey],
        evaluations: Sequence[float] | None,
        made_by: Mapping[str, Any],
    ) -> None:
        new = [
            row for row, key in enumerate(keys) if key not in self._index or key in self._dropped
        ]
        if not new:
            return
        facts = facts or [{}] * len(keys)
        spent: Sequence[float | None] = evaluations or [None] * len(keys)
        keys, pictures, facts, spent = (
            [keys[row] for row in new],
            [pictures[row] for row in new],
            [facts[row] for row in new],
            [spent[row] for row in new],
        )
        features = {extractor: values[new] for extractor, values in (features or {}).items()}
        drop = [key in dropped for key in keys]
        table = shards.as_table(
            self.method,
            [(key.prompt, key.seed) for key in keys],
            pictures,
            facts,
            spent,
            drop,
            made_by,
        )
        name = shards.name_of(table, self.shard_names())
        for extractor, values in features.items():
            self.files.write(_features_file(extractor, name), array_as_bytes(values))
        self.files.write(f"{name}{shards.ENDING}", shards.as_bytes(table))
        self._add_to_index(name, table)

    def png(self, keys: Sequence[SampleKey]) -> list[bytes]:
        """The PNG files of stored images, in the order of `keys`; each shard is read once.

        Raises `UserError` for one that was dropped.
        """
        return self._gather(
            keys,
            ["png", "sha256"],
            lambda table, row, shard: shards.checked_png(self.files, shard, table, row),
        )

    def pictures(self, keys: Sequence[SampleKey]) -> list[np.ndarray]:
        """Stored images as uint8 `[H, W, 3]`."""
        return [decode_png(png) for png in self.png(keys)]

    def pixel_digests(self, keys: Sequence[SampleKey]) -> list[str]:
        """Digests of the pixels of stored images: computed from the picture, or, where it was
        dropped, as kept then.
        """

        def digest(table: pa.Table, row: int, shard: str) -> str:
            kept = table["pixels"][row].as_py() if "pixels" in table.column_names else None
            return kept or pixel_digest(
                decode_png(shards.checked_png(self.files, shard, table, row))
            )

        return self._gather(keys, ["png", "sha256", "pixels"], digest)

    def facts(self, keys: Sequence[SampleKey]) -> list[dict[str, float]]:
        """What the method reported of stored images, by name."""
        return self._gather(
            keys, ["facts"], lambda table, row, _: json.loads(table["facts"][row].as_py())
        )

    def evaluations(self, keys: Sequence[SampleKey]) -> list[float | None]:
        """Evaluations of the model that each stored image took, as its share of its batch; None
        where that was not kept.
        """
        return self._gather(
            keys, ["evaluations"], lambda table, row, _: table["evaluations"][row].as_py()
        )

    def made_by(self, keys: Iterable[SampleKey]) -> list[tuple[dict[str, Any], int]]:
        """What made stored images, each with their number, most first."""
        counts: dict[str, int] = {}
        by_shard = _by_shard([self._index[key] for key in dict.fromkeys(keys)])
        for shard, positions in by_shard.items():
            maker = json.dumps(shards.made_by(self.files, shard), sort_keys=True)
            counts[maker] = counts.get(maker, 0) + len(positions)
        found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [(json.loads(maker), count) for maker, count in found]

    def features(
        self,
        keys: Sequence[SampleKey],
        extractor: str,
        extract: Callable[[list[np.ndarray]], np.ndarray],
    ) -> np.ndarray:
        """Features `[n, d]` of stored images; extracted a whole shard at a time and kept beside it,
        row for row.

        Raises `UserError` where there are none and the picture was dropped.
        """
        kept = self.with_features(extractor)
        places = [self._place_with_features(key, kept) or self._index[key] for key in keys]
        result: np.ndarray | None = None
        for shard, positions in _by_shard(places).items():
            rows = [places[position].row for position in positions]
            values = (
                shards.read_features(self.files, _features_file(extractor, shard), max(rows))
                if shard in kept
                else None
            )
            if values is None:
                values = self._extracted(shard, rows, extractor, extract)
            if result is None:
                result = np.empty((len(keys), *values.shape[1:]), dtype=np.float32)
            result[positions] = values[rows]
        return np.empty((0, 0), dtype=np.float32) if result is None else result

    def with_features(self, extractor: str) -> set[str]:
        """The names of the shards that have features of an extractor."""
        return {
            name.removesuffix(".npy")
            for name in self.files.names(f"features/{extractor}")
            if name.endswith(".npy")
        }

    def has_features(self, key: SampleKey, shards_with: Collection[str]) -> bool:
        """Whether a stored image has features in one of `shards_with` (see `with_features`)."""
        return self._place_with_features(key, shards_with) is not None

    def _place_with_features(self, key: SampleKey, shards_with: Collection[str]) -> Place | None:
        """The row with features of an image. Of an image that was made again, an older row counts
        too if its picture was the same.
        """
        place = self._index[key]
        if place.shard in shards_with:
            return place
        return next(
            (
                older
                for older in self._older.get(key, ())
                if older.shard in shards_with and self._same_picture(key, older)
            ),
            None,
        )

    def _same_picture(self, key: SampleKey, older: Place) -> bool:
        if self._alike is None:
            pairs = [(image, place) for image, places in self._older.items() for place in places]
            newer = self._at([self._index[image] for image, _ in pairs], ["sha256"], _sha256)
            older_ones = self._at([place for _, place in pairs], ["sha256"], _sha256)
            self._alike = {
                pair
                for pair, now, before in zip(pairs, newer, older_ones, strict=True)
                if now == before
            }
        return (key, older) in self._alike

    def _extracted(
        self,
        shard: str,
        rows: Sequence[int],
        extractor: str,
        extract: Callable[[list[np.ndarray]], np.ndarray],
    ) -> np.ndarray:
        """Features of a shard's pictures, `[rows, d]`. They are kept beside the shard if it has all
        of its pictures; rows whose picture was dropped are NaN.
        """
        table = shards.read_columns(self.files, shard, ["png", "sha256"])
        # one that was dropped raises
        there = [
            row
            for row, valid in enumerate(table["png"].is_valid().to_pylist())
            if valid or row in rows
        ]
        pictures = [decode_png(shards.checked_png(self.files, shard, table, row)) for row in there]
        values = shards.extracted(extract, extractor, pictures).astype(np.float32)
        if len(there) == table.num_rows:
            self.files.write(_features_file(extractor, shard), array_as_bytes(values))
            return values
        full = np.full((table.num_rows, *values.shape[1:]), np.nan, dtype=np.float32)
        full[there] = values
        return full

    def _gather(
        self,
        keys: Sequence[SampleKey],
        columns: list[str],
        pick: Callable[[pa.Table, int, str], Any],
    ) -> list[Any]:
        return self._at([self._index[key] for key in keys], columns, pick)

    def _at(
        self, places: Sequence[Place], columns: list[str], pick: Callable[[pa.Table, int, str], Any]
    ) -> list[Any]:
        result: list[Any] = [None] * len(places)
        for shard, positions in _by_shard(places).items():
            content = shards.read_columns(self.files, shard, columns)
            for position in positions:
                result[position] = pick(content, places[position].row, shard)
        return result

    def _add_to_index(self, shard: str, table: pa.Table) -> None:
        self._known.add(shard)
        dropped = (
            table["pixels"].is_valid().to_pylist()
            if "pixels" in table.column_names
            else [False] * table.num_rows
        )
        for row, (prompt, seed, without) in enumerate(
            zip(table["prompt"].to_pylist(), table["seed"].to_pylist(), dropped, strict=True)
        ):
            key, place = SampleKey(prompt, seed), Place(shard, row)
            if key not in self._index:
                self._index[key] = place
            elif key in self._dropped:
                self._older[key] = (self._index[key], *self._older.get(key, ()))
                self._index[key] = place
                self._alike = None
            else:
                continue  # whoever stored it first keeps it
            (self._dropped.add if without else self._dropped.discard)(key)


def _by_shard(places: Sequence[Place]) -> dict[str, list[int]]:
    """Positions in `places` by shard."""
    found: dict[str, list[int]] = {}
    for position, place in enumerate(places):
        found.setdefault(place.shard, []).append(position)
    return found


def _features_file(extractor: str, shard: str) -> str:
    return f"features/{extractor}/{shard}.npy"


def _sha256(table: pa.Table, row: int, shard: str) -> str:
    return str(table["sha256"][row].as_py())
