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

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.base.spread import evenly
from bench.store.store import SampleKey

if TYPE_CHECKING:
    from bench.running.run import Run

IMAGES_PER_UNIT = 64
Unit = tuple[SampleKey, ...]  # what one worker makes at a time, and all that is lost with it


@dataclass
class Work:
    """The units of one run, cut in the order in which images are asked for; who asks again gets the
    same units. `batch`: images of one batch.
    """

    batch: int
    _units: list[Unit] = field(default_factory=list)
    _unit_of: dict[SampleKey, int] = field(default_factory=dict)

    def units(self, keys: Sequence[SampleKey]) -> list[Unit]:
        """The units that hold these images.

        Images that nobody asked for before are cut into units of their own.
        """
        for unit in cut(
            [key for key in dict.fromkeys(keys) if key not in self._unit_of], self.batch
        ):
            self._unit_of |= dict.fromkeys(unit, len(self._units))
            self._units.append(unit)
        return [self._units[number] for number in sorted({self._unit_of[key] for key in keys})]


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


def parts(run: Run) -> list[list[SampleKey]]:
    """The images that a run asks for, as it asks: of its roles, then of every attack, generation
    and ask.

    An attack that decides as it goes ends the list, as what comes after it would be cut otherwise
    than one process does it.
    """
    found = [[key for role in run.roles for key in run.keys(role)]]
    for attack in run.attacks.values():
        if attack.adaptive():
            break
        found += [
            list(run.keys_of(prompts, images, generation))
            for generation in range(run.seeds)
            for prompts, images in attack.asks(run.suite)
        ]
    return found


def planned(run: Run, ahead: bool = True) -> list[Unit]:
    """The units of a run in their order; without `ahead`, those of its roles alone."""
    return list(
        dict.fromkeys(
            unit for keys in parts(run)[: None if ahead else 1] for unit in run.work.units(keys)
        )
    )


THUMBNAILS = 64  # prompts whose first image is shown in the record, at most
PROMPTS = 512  # of a role whose images have digests in the record, at most


def shown_keys(run: Run) -> set[SampleKey]:
    """The images that thumbnails and digests of a record come from."""
    found: set[SampleKey] = set()
    for role in run.roles:
        for samples in (run.samples(role, generation) for generation in range(run.seeds)):
            rows = {
                *evenly(len(samples.prompts), PROMPTS),
                *(evenly(len(samples.prompts), THUMBNAILS) if role == "memorized" else ()),
            }
            found.update(
                key
                for row in rows
                for key in samples.keys[row * samples.images : (row + 1) * samples.images]
            )
    return found
