"""One of n equal parts of a run, for schedulers: its plan, and how it is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.base.errors import UserError
from bench.running.demand import Unit, planned

if TYPE_CHECKING:
    from bench.running.run import Run


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

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard_plan(run: Run, shard: Shard) -> dict[str, Any]:
    """What a shard would make: its units of all, its images, and how many of these are missing."""
    everything = planned(run)
    units = shard.units(everything)
    missing = (
        sum(map(len, units))
        if not run.suite.is_fetched()
        else len(run.lacking(key for unit in units for key in unit))
    )
    return {
        "shard": str(shard),
        "units": len(units),
        "units_of_run": len(everything),
        "shard_images": sum(map(len, units)),
        "shard_images_missing": missing,
    }


def make_shard(run: Run, shard: Shard) -> dict[str, Any]:
    """Make a shard's images, and the fitted state where the store has none yet; measure nothing and
    write no record.

    Returns its plan with `images_made`, and `images_left`: what the run still lacks, as far as this
    process sees the store.
    """
    plan = shard_plan(run, shard)
    if plan["shard_images_missing"]:
        run.store.prepare()
        state, *_ = run.fitted()
        run.executor.make(run, state, shard.units(planned(run)))
    run.store.refresh()
    left = len(run.lacking(key for unit in planned(run) for key in unit))
    return plan | {"images_made": plan["shard_images_missing"], "images_left": left}
