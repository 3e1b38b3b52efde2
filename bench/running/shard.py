"""One of n equal parts of a run, for schedulers: its plan, and how it is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.base.errors import UserError
from bench.base.progress import Report, silent
from bench.running.engine import Engine
from bench.running.executors import Executor
from bench.running.experiment import Experiment
from bench.running.fitting import fitted
from bench.running.images import Images
from bench.running.pieces import Piece, pieces_of
from bench.running.searching import find
from bench.running.units import Unit


@dataclass(frozen=True)
class Shard:
    """Number `number` (from 1) of `of` equal parts of a run's units."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`"3/8"` is the third of eight.

        Raises `UserError` for anything else than i/n with 1 <= i <= n.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(
                f"--shard must be i/n with i from 1 to n, such as 1/8 or 8/8, not '{text}'"
            )
        return cls(int(match[1]), int(match[2]))

    def units(self, units: Sequence[Unit]) -> list[Unit]:
        """Every n-th unit, so that no shard gets only the dear ones."""
        return list(units[self.number - 1 :: self.of])

    def pieces(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Of every attack on known pictures and every generation each n-th piece."""
        return [piece for piece in pieces if piece.part % self.of == self.number - 1]

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard_plan(experiment: Experiment, images: Images, shard: Shard) -> dict[str, Any]:
    """What a shard would make: its units of all, its images, and how many of these are missing."""
    everything = images.units.planned(experiment)
    units = shard.units(everything)
    keys = [key for unit in units for key in unit]
    missing = len(images.lacking(keys)) if experiment.suite.is_fetched() else len(keys)
    return {
        "shard": str(shard),
        "units": len(units),
        "units_of_run": len(everything),
        "shard_images": len(keys),
        "shard_images_missing": missing,
        "shard_pieces": len(shard.pieces(_pieces(experiment))),
    }


def _pieces(experiment: Experiment) -> list[Piece]:
    """The pieces of a run; none where its lists or labels cannot be read, which its plan says."""
    try:
        return pieces_of(experiment)
    except UserError:
        return []


def make_shard(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    shard: Shard,
    executor: Executor,
    report: Report = silent,
) -> dict[str, Any]:
    """Make a shard's images, and the fitted state where the store has none yet.

    What its pieces of attacks on known pictures find is stored too. Nothing is measured and no
    record is written. Returns the shard's plan with `images_made`, and with `images_left`: what the
    run still lacks, as far as this process sees the store.
    """
    plan = shard_plan(experiment, images, shard)
    units, pieces = images.units.planned(experiment), shard.pieces(pieces_of(experiment))
    if plan["shard_images_missing"] or pieces:
        images.store.prepare()
        state = fitted(experiment, engine, images.store, report).state
        executor.make(experiment, engine, images, state, shard.units(units), frozenset(), report)
        for piece in pieces:
            find(experiment, engine, images, state, piece, report)
    images.store.refresh()
    left = len(images.lacking(key for unit in units for key in unit))
    return plan | {"images_made": plan["shard_images_missing"], "images_left": left}
