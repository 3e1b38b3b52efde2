"""What recorders kept of sampling: arrays of numbers, one for each image, beside the images.

    <root>/<suite>/<method>-<key>/traces/<recorder>/00000-<content>.json   whose rows they are
                                                    00000-<content>.npy    the rows

Nothing here is needed to score an image. A part that is damaged, or without its other half, counts
as absent and is made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bench.base.arrays import array_as_bytes, array_of
from bench.base.digests import digest_of
from bench.base.errors import UserError
from bench.store.folders import Folder
from bench.store.notes import read_note, write_note
from bench.store.store import SampleKey


class Traces:
    """The arrays of one recorder, in the folder of the images that they belong to."""

    def __init__(self, images: Folder, recorder: str) -> None:
        self.files = images.at("traces").at(recorder)
        self._index: dict[SampleKey, tuple[str, int]] = {}
        self._known: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Add what other processes have written meanwhile to the index."""
        names = self.files.names()
        arrays = {name.removesuffix(".npy") for name in names if name.endswith(".npy")}
        for part in sorted(name.removesuffix(".json") for name in names if name.endswith(".json")):
            if part in self._known or part not in arrays:
                continue
            self._known.add(part)
            note = read_note(self.files, f"{part}.json")
            for row, (prompt, seed) in enumerate((note or {}).get("keys", ())):
                self._index.setdefault(SampleKey(prompt, seed), (part, row))

    def missing(self, keys: Iterable[SampleKey]) -> list[SampleKey]:
        """The keys without an array, each once, in the order given."""
        return [key for key in dict.fromkeys(keys) if key not in self._index]

    def append(self, keys: Sequence[SampleKey], values: np.ndarray) -> None:
        """Store float32 rows `[n, ...]` of images; those that have one already keep theirs.

        Raises `UserError` when the folder cannot be written.
        """
        with self.files.alone():
            self.refresh()
            new = [row for row, key in enumerate(keys) if key not in self._index]
            if not new:
                return
            pairs = [[keys[row].prompt, keys[row].seed] for row in new]
            part = f"{len(self._known):05d}-{digest_of(pairs)[:12]}"
            # The rows first: a list of keys promises that they are there.
            self.files.write(f"{part}.npy", array_as_bytes(np.asarray(values)[new]))
            write_note(self.files, f"{part}.json", {"keys": pairs})
            self.refresh()

    def read(self, keys: Sequence[SampleKey]) -> np.ndarray:
        """The rows of images, float32 `[n, ...]`, in the order of `keys`.

        Raises `UserError` for one that is not there, and forgets a part that is damaged, so that
        the same command makes it again.
        """
        if lacking := self.missing(keys):
            raise UserError(f"{self.files} has nothing of '{lacking[0].prompt}'")
        places: dict[str, list[int]] = {}
        for position, key in enumerate(keys):
            places.setdefault(self._index[key][0], []).append(position)
        result: np.ndarray | None = None
        for part, positions in places.items():
            rows = [self._index[keys[position]][1] for position in positions]
            try:
                values = array_of(self.files.read(f"{part}.npy"))[rows]
            except (ValueError, EOFError, IndexError) as error:
                write_note(self.files, f"{part}.json", {"keys": []})
                raise UserError(
                    f"{self.files}/{part}.npy is damaged; the same command makes it again"
                ) from error
            if result is None:
                result = np.empty((len(keys), *values.shape[1:]), dtype=np.float32)
            result[positions] = values
        return np.empty((0,), dtype=np.float32) if result is None else result
