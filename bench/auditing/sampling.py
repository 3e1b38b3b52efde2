"""Images of an audit: every setting of model and method has its own images in the ordinary store,
of the same prompts and seeds, so that settings are compared picture by picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.auditing.prompts import Asking
from bench.base.progress import Report, silent
from bench.features.extractor import Extractor, in_whole_batches
from bench.records.parts import REFERENCE
from bench.records.record import RunRecord
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


@dataclass
class Generated:
    """The images of some prompts under one setting: which prompt each has, int64 `[M]`, and where
    they are.
    """

    askings: Sequence[Asking]
    prompt: np.ndarray
    keys: tuple[SampleKey, ...]
    prepared: Prepared

    def features(self, extractor: Extractor) -> np.ndarray:
        """Unit vectors, float32 `[M, d]`, kept beside the images."""
        return self.prepared.images.store.features(
            self.keys, extractor.fingerprint, in_whole_batches(extractor)
        )

    def pictures(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Some of the images, uint8 `[H, W, 3]`."""
        return self.prepared.images.store.pictures([self.keys[row] for row in rows])


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
        prepared = self.prepared(column)
        generated = planned(prepared, askings, few)
        experiment, engine, images = prepared
        if images.lacking(generated.keys):
            images.store.prepare()
            learned = fitted(experiment, engine, images.store, self.report)
            units = images.units.of(generated.keys)
            Local().make(
                experiment, engine, images, learned.state, units, frozenset(), self._named(column)
            )
            engine.release()  # other settings are other models, and one at a time fits the memory
        return generated

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


def planned(prepared: Prepared, askings: Sequence[Asking], few: int | None = None) -> Generated:
    """The images of some prompts, made or not."""
    keys: list[SampleKey] = []
    numbers: list[int] = []
    for number, asking in enumerate(askings):
        images = asking.images
        if few is not None:
            images = min(images, few * max(1, len(asking.own)))
        prompt = Prompt(f"{asking.kind}-{number}", asking.text, asking.kind, ())
        keys += prepared.experiment.keys_of([prompt], images)
        numbers += [number] * images
    return Generated(askings, np.array(numbers, dtype=np.int64), tuple(keys), prepared)
