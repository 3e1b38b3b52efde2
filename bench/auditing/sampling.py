"""Images of an audit: every setting of model and method has its own images in the ordinary store,
of the same prompts and seeds, so that settings are compared picture by picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.auditing.prompts import Asking, Size
from bench.base.progress import Report, silent
from bench.features.extractor import Extractor, in_whole_batches
from bench.records.parts import REFERENCE
from bench.records.record import RunRecord
from bench.running.engine import Engine
from bench.running.executors import Local
from bench.running.fitting import fitted
from bench.running.prepare import Prepared, prepare
from bench.running.run import finished, run
from bench.store.folders import Root
from bench.store.store import SampleKey
from bench.suite.prompts import Prompt
from bench.suite.suite import Suite


@dataclass(frozen=True)
class Column:
    """One setting: a suite, which says which model, and a method. `command` writes it as a file,
    where one can.
    """

    name: str
    suite: Suite
    method: str = REFERENCE
    parameters: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def of_size(self, size: Size) -> Column:
        """The same for pictures of another height and width; None for the model's square."""
        if size is None:
            return self
        settings = self.suite.settings
        model = settings.model.model_copy(update={"size": size})
        sized = replace(self.suite, settings=settings.model_copy(update={"model": model}))
        return replace(self, suite=sized)


@dataclass(frozen=True)
class OfSize:
    """The images of one size among others: their rows, int64 `[m]`, their keys, and what makes and
    keeps them.
    """

    rows: np.ndarray
    keys: tuple[SampleKey, ...]
    prepared: Prepared

    @property
    def lacking(self) -> list[SampleKey]:
        """Those that are not stored."""
        return list(self.prepared.images.lacking(self.keys))


@dataclass
class Generated:
    """The images of some prompts under one setting: which prompt each has, int64 `[M]`, its key,
    and where they are, size by size.
    """

    askings: Sequence[Asking]
    prompt: np.ndarray
    keys: tuple[SampleKey, ...]
    parts: Sequence[OfSize]

    def features(self, extractor: Extractor) -> np.ndarray:
        """Unit vectors, float32 `[M, d]`, kept beside the images."""
        found = [
            part.prepared.images.store.features(
                part.keys, extractor.fingerprint, in_whole_batches(extractor)
            )
            for part in self.parts
        ]
        table = np.empty((len(self.keys), found[0].shape[1]), dtype=found[0].dtype)
        for part, features in zip(self.parts, found, strict=True):
            table[part.rows] = features
        return table

    def pictures(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Some of the images, uint8 `[H, W, 3]`."""
        found: dict[int, np.ndarray] = {}
        for part in self.parts:
            own = set(part.rows.tolist())
            mine = [row for row in rows if row in own]
            pictures = part.prepared.images.store.pictures([self.keys[row] for row in mine])
            found |= dict(zip(mine, pictures, strict=True))
        return [found[row] for row in rows]


@dataclass
class Studio:
    """Where images are made and kept, and what is told of it."""

    store: Root
    device: torch.device
    records: Path
    report: Report = silent

    def prepared(self, column: Column) -> Prepared:
        return prepare(column.suite, column.method, column.parameters, self.store, self.device)

    def made(self, column: Column, askings: Sequence[Asking], few: int | None = None) -> Generated:
        """The images of some prompts; those that are stored are not made again. With `few`, at most
        so many of each picture that has the prompt (of a prompt of no picture's, so many).
        """
        generated = self.planned(column, askings, few)
        loaded: Engine | None = None
        for part in generated.parts:
            if not part.lacking:
                continue
            experiment, engine, images = part.prepared
            if loaded:
                engine.adopt(loaded)  # the same model, for pictures of another size
            images.store.prepare()
            learned = fitted(experiment, engine, images.store, self.report)
            units = images.units.of(part.keys)
            told = self._named(column)
            Local().make(experiment, engine, images, learned.state, units, frozenset(), told)
            loaded = engine
        if loaded:
            loaded.release()  # other settings are other models, and one at a time fits the memory
        return generated

    def planned(
        self, column: Column, askings: Sequence[Asking], few: int | None = None
    ) -> Generated:
        """The images of some prompts, made or not."""
        by_size = {
            size: self.prepared(column.of_size(size))
            for size in dict.fromkeys(one.size for one in askings)
        }
        keys: list[SampleKey] = []
        numbers: list[int] = []
        for number, asking in enumerate(askings):
            images = asking.images
            if few is not None:
                images = min(images, few * max(1, len(asking.own)))
            prompt = Prompt(f"{asking.kind}-{number}", asking.text, asking.kind, ())
            keys += by_size[asking.size].experiment.keys_of([prompt], images)
            numbers += [number] * images
        parts = []
        for size, prepared in by_size.items():
            rows = [row for row, number in enumerate(numbers) if askings[number].size == size]
            parts.append(OfSize(np.array(rows), tuple(keys[row] for row in rows), prepared))
        return Generated(askings, np.array(numbers, dtype=np.int64), tuple(keys), parts)

    def record(self, column: Column) -> RunRecord:
        """The ordinary record of one method on the suite."""
        prepared = self.prepared(column)
        found = finished(prepared.experiment, prepared.engine, self.records)
        if found is None:
            found = run(*prepared, self.records, report=self._named(column))
        return found

    def _named(self, column: Column) -> Report:
        def told(what: str, done: int, total: int) -> None:
            self.report(f"{what} ({column.name})", done, total)

        return told
