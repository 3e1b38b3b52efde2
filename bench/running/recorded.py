"""Which images' sampling is recorded, by whom, and where the arrays are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.base.parameters import configure
from bench.contracts.detector import Detector, Recorder
from bench.diffusion.families import refuse_chunks
from bench.records.parts import REFERENCE
from bench.registry import registry
from bench.running.experiment import Experiment
from bench.store.folders import Folder
from bench.store.store import SampleKey
from bench.store.traces import Traces
from bench.suite.detection import Judged
from bench.suite.suite import Suite


def recorders_of(detector: Detector, source: str | None) -> dict[str, Recorder]:
    """The recorders of a detector by the name of their folder."""
    return {recorder.name(source): recorder for recorder in detector.recorders()}


def detection_keys(experiment: Experiment, judged: Judged) -> dict[str, tuple[SampleKey, ...]]:
    """The images that detectors are judged on, by kind of prompt, prompt by prompt."""
    images = judged.settings.images
    return {kind: experiment.keys_of(prompts, images) for kind, prompts in judged.kinds.items()}


@dataclass
class Recorded:
    """Recorders by name, the images that they are wanted of, and what is kept beside these."""

    recorders: Mapping[str, Recorder]
    wanted: frozenset[SampleKey]
    images: Folder
    _parts: dict[str, Traces] = field(default_factory=dict)

    @classmethod
    def of_run(cls, experiment: Experiment, images: Folder) -> Recorded:
        """What the ordinary run keeps: nothing, but for `none` under a suite that asks for it."""
        suite: Suite = experiment.suite
        asked = suite.settings.detection
        if experiment.method_name != REFERENCE or not asked or not asked.record:
            return cls({}, frozenset(), images)
        recorders: dict[str, Recorder] = {}
        for name in asked.record:
            entry = registry.find("detector", suite.places.judge(name))
            detector: Detector = configure("detector", entry.name, entry.load(), {})
            refuse_chunks(suite, detector.in_chunks, f"detector {entry.name} of [detection] record")
            recorders |= recorders_of(detector, entry.source)
        keys = detection_keys(experiment, Judged(suite))
        return cls(recorders, frozenset(key for found in keys.values() for key in found), images)

    def traces(self, name: str) -> Traces:
        """The arrays of the recorder with this name."""
        if name not in self._parts:
            self._parts[name] = Traces(self.images, name)
        return self._parts[name]

    def lacking(self, keys: Iterable[SampleKey]) -> list[SampleKey]:
        """Those images of `keys`, each once and in order, of which a recorder keeps nothing yet."""
        keys = [key for key in dict.fromkeys(keys) if key in self.wanted]
        missing = {key for name in self.recorders for key in self.traces(name).missing(keys)}
        return [key for key in keys if key in missing]

    def keep(self, keys: Sequence[SampleKey], kept: Mapping[str, list[np.ndarray]]) -> None:
        """Store what recorders kept of these images, by name and image; of the wanted ones only."""
        rows = [row for row, key in enumerate(keys) if key in self.wanted]
        for name, values in kept.items():
            if rows and values:
                wanted = [keys[row] for row in rows]
                self.traces(name).append(wanted, np.stack([values[row] for row in rows]))
