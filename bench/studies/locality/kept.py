"""What an analysis found out piece by piece, kept beside the images of the model, so that it goes
on after an interruption and nothing is found twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.base.digests import digest_of
from bench.base.progress import Report
from bench.contracts.held import Arrays
from bench.store.findings import Findings
from bench.store.folders import Folder

# Grows with every change of the way from a model to what is kept.
VERSION = 1


@dataclass(frozen=True)
class Kept:
    """The folder of one kind of finding; `identity` is everything that decides them besides the
    model and what their names say.
    """

    files: Folder
    kind: str
    identity: Mapping[str, Any]
    report: Report

    def found(
        self, what: str, names: Sequence[str], make: Callable[[int], Arrays]
    ) -> list[dict[str, np.ndarray]]:
        """The findings of these names; `make` finds the one at a place that is not there yet."""
        folder = Findings(
            self.files, f"locality-{self.kind}", dict(self.identity) | {"locality": VERSION}
        )
        there = {name: folder.read(name) for name in dict.fromkeys(names)}
        if any(arrays is None for arrays in there.values()):
            folder.prepare()
        given: dict[str, dict[str, np.ndarray]] = {}
        for place, name in enumerate(names):
            self.report(what, place, len(names))
            arrays = given.get(name) or there[name]
            if arrays is None:
                arrays = {key: np.asarray(value) for key, value in make(place).items()}
                folder.write(name, arrays)
            given[name] = arrays
        self.report(what, len(names), len(names))
        return [given[name] for name in names]


def name_of(*parts: Any) -> str:
    """The name of a finding, from arrays and whatever JSON can hold."""
    return digest_of([_plain(part) for part in parts])[:24]


def _plain(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        content = np.ascontiguousarray(part).tobytes()
        return [str(part.dtype), list(part.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(part, Mapping):
        return {str(key): _plain(value) for key, value in part.items()}
    return part
