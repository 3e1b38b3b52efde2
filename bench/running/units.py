"""What a run has to make, cut into units that any process on any machine can make alone.

The images come in a fixed order: all keys of the roles that some metric reads, in all generations,
then what each attack asks for that did not come before, ask by ask. Every such part is cut into
units of whole batches. The cut follows from the protocol and the method alone and never from what
is stored already, so a resumed run, another shard and a worker far away all see the same units with
the same batches in them.

A unit that is stored in part is finished. Where images of a batch influence each other
(`Method.mixes_images`), every batch of it with a missing image is sampled again in full and only
what is missing is stored, so the result is that of an undisturbed run, bit for bit. Elsewhere a
picture does not depend on its batch beyond float rounding, and only what is missing is sampled;
since a process that is stopped stores whole batches, what is missing then are whole batches too,
and even rounding is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from bench.base.spread import evenly
from bench.running.experiment import Experiment
from bench.store.store import SampleKey

IMAGES_PER_UNIT = 64
Unit = tuple[SampleKey, ...]  # what one worker makes at a time, and all that is lost with it
THUMBNAILS = 64  # prompts whose first image is shown in the record, at most
PROMPTS = 512  # of a role whose images have digests in the record, at most


class Units:
    """The units of one run, cut in the order in which images are asked for.

    Whoever asks for the same images again gets the same units. `batch` counts images of one batch.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._units: list[Unit] = []
        self._unit_of: dict[SampleKey, int] = {}

    def of(self, keys: Iterable[SampleKey]) -> list[Unit]:
        """The units that hold these images, in the order in which they were cut.

        Images that nobody asked for before are cut into units of their own.
        """
        keys = list(dict.fromkeys(keys))
        for unit in cut([key for key in keys if key not in self._unit_of], self.batch):
            self._unit_of |= dict.fromkeys(unit, len(self._units))
            self._units.append(unit)
        return [self._units[number] for number in sorted({self._unit_of[key] for key in keys})]

    def planned(self, experiment: Experiment, ahead: bool = True) -> list[Unit]:
        """The units of a run in their order; without `ahead`, those of its roles alone."""
        asked = experiment.asked()[: None if ahead else 1]
        return list(dict.fromkeys(unit for keys in asked for unit in self.of(keys)))


def cut(keys: Sequence[SampleKey], batch: int) -> list[Unit]:
    """Keys in whole batches, as many as make about `IMAGES_PER_UNIT` images."""
    size = max(IMAGES_PER_UNIT // batch, 1) * batch
    return [tuple(keys[start : start + size]) for start in range(0, len(keys), size)]


def to_sample(
    unit: Unit, missing: Set[SampleKey], batch: int, mixes_images: bool
) -> list[SampleKey]:
    """What must be sampled so that all of a unit is there: what is missing, or the whole batches
    that it lies in.
    """
    if not mixes_images:
        return [key for key in unit if key in missing]
    batches = [unit[start : start + batch] for start in range(0, len(unit), batch)]
    return [key for part in batches if not missing.isdisjoint(part) for key in part]


def shown_keys(experiment: Experiment) -> set[SampleKey]:
    """The images that thumbnails and digests of a record come from."""
    found: set[SampleKey] = set()
    for role in experiment.roles:
        prompts, images = experiment.suite.prompts(role), experiment.images_per_prompt(role)
        rows = {
            *evenly(len(prompts), PROMPTS),
            *(evenly(len(prompts), THUMBNAILS) if role == "memorized" else ()),
        }
        for generation in range(experiment.seeds):
            keys = experiment.keys_of(prompts, images, generation)
            found.update(key for row in rows for key in keys[row * images : (row + 1) * images])
    return found
