"""Compare a fresh record with the committed one: `python -m bench.records.tolerance NEW OLD`.

A suite's numbers do not depend on chance, only on how a machine rounds; a larger difference means
that something changed. Exits with 0 when every score is within its tolerance, 1 when one is not, 2
when the two cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.base.errors import UserError, one_line
from bench.records.record import RunRecord, Score, load_record

# so that a difference of exactly the tolerance is within it: 0.52 - 0.50 is 0.020000000000000018
SLACK = 1e-9


@dataclass(frozen=True)
class Tolerance:
    """How far a score may move: in its own unit, as a share of the old value, or anywhere
    (`reported`).
    """

    kind: Literal["absolute", "relative", "reported"]
    limit: float = 0.0

    def allows(self, new: float, old: float) -> bool:
        if self.kind == "reported":
            return True
        bound = self.limit * abs(old) if self.kind == "relative" else self.limit
        return abs(new - old) <= bound + (SLACK if self.limit else 0.0)

    def __str__(self) -> str:
        if self.kind == "reported":
            return "none, reported"
        if self.kind == "relative":
            return f"{self.limit:.0%} of old"
        return f"{self.limit:g}" if self.limit else "exact"


REPORTED, EXACT = Tolerance("reported"), Tolerance("absolute", 0.0)
TOLERANCES = {
    "sscd": Tolerance("absolute", 0.02),
    "sscd_p95": Tolerance("absolute", 0.02),
    # one of the 78 images of testbed-quick may cross the threshold, not two
    "memorized_ratio": Tolerance("absolute", 0.02),
    "any_copy": Tolerance("absolute", 0.02),
    # likewise of the images that each of these is over, 18 at the fewest
    "copies": Tolerance("absolute", 0.06),
    "sscd_copied": Tolerance("absolute", 0.02),
    "copies_sometimes": Tolerance("absolute", 0.1),
    "copies_never": Tolerance("absolute", 0.05),
    "any_copy_clean": Tolerance("absolute", 0.07),
    "recognised": Tolerance("absolute", 0.07),
    "diversity": Tolerance("absolute", 0.02),
    "clip_score": Tolerance("absolute", 0.02),
    "clip_score_clean": Tolerance("absolute", 0.02),
    "fid": Tolerance("relative", 0.10),
    "kid": REPORTED,
    "precision": Tolerance("absolute", 0.05),
    "recall": Tolerance("absolute", 0.05),
    "nfe_per_image": EXACT,
    "nfe_per_image_clean": EXACT,
    "fit_nfe": EXACT,
    "seconds_per_image": REPORTED,  # times belong to a machine
    "fit_seconds": REPORTED,
    "time_ratio": REPORTED,
    "seconds_per_image_clean": REPORTED,
    "time_ratio_clean": REPORTED,
}


@dataclass(frozen=True)
class Line:
    """One score of both records and the verdict on it."""

    name: str
    new: float | None
    old: float | None
    tolerance: str
    verdict: str
    within: bool

    def __str__(self) -> str:
        difference = (
            f"{self.new - self.old:+.6f}" if self.new is not None and self.old is not None else "–"
        )
        values = (
            f"new {_text(self.new):>12}  old {_text(self.old):>12}  difference {difference:>12}"
        )
        return f"{self.name:<18} {values}  tolerance {self.tolerance:<14}  {self.verdict}"


def _text(value: float | None) -> str:
    return "null" if value is None else f"{value:.6f}"


def compare(new: RunRecord, old: RunRecord) -> list[Line]:
    """A line for every score and cost of either record, by name.

    Raises `UserError` unless both are complete runs of one protocol.
    """
    for name in ("suite", "suite_fingerprint", "limit", "method", "method_version", "parameters"):
        if getattr(new, name) != getattr(old, name):
            raise UserError(
                f"these records cannot be compared: {name} is {getattr(new, name)} in the new one"
                f" and {getattr(old, name)} in the old one"
            )
    for which, record in (("new", new), ("old", old)):
        if record.status != "complete":
            raise UserError(
                f"the {which} record is {record.status}, not complete:"
                f" {'; '.join(record.errors) or 'no reason given'}"
            )
    mine, theirs = _all(new), _all(old)
    if not theirs:
        raise UserError("the old record has no scores to compare with")
    return [
        _line(name, mine.get(name), theirs.get(name))
        for name in sorted(mine.keys() | theirs.keys())
    ]


def _all(record: RunRecord) -> dict[str, Score]:
    return {**record.scores, **record.cost, **record.attacks}


def _line(name: str, new: Score | None, old: Score | None) -> Line:
    tolerance = TOLERANCES.get(name)
    within, verdict = _verdict(new, old, tolerance)
    return Line(
        name,
        new.value if new else None,
        old.value if old else None,
        str(tolerance) if tolerance else "not stated",
        verdict,
        within,
    )


def _verdict(new: Score | None, old: Score | None, tolerance: Tolerance | None) -> tuple[bool, str]:
    if new is None or old is None:
        return False, f"BREACH: only the {'old' if new is None else 'new'} record has it"
    for what, mine, theirs in (
        ("metric", new.metric, old.metric),
        ("version", new.metric_version, old.metric_version),
        ("unit", new.unit, old.unit),
    ):
        if mine != theirs:
            return False, f"BREACH: {what} {mine} against {theirs}"
    if new.value is None or old.value is None:
        both = new.value is None and old.value is None
        return (
            (True, "within: null in both")
            if both
            else (False, f"BREACH: null in one only: {(new if new.value is None else old).reason}")
        )
    if tolerance is None:
        return False, "BREACH: no tolerance is stated for it in bench/records/tolerance.py"
    if tolerance.kind == "reported":
        return True, "reported only"
    if new.n != old.n:
        return False, f"BREACH: of {new.n} against {old.n} images"
    return (True, "within") if tolerance.allows(new.value, old.value) else (False, "BREACH")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for every score and the sum of them; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.records.tolerance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("new", type=Path, help="record just made")
    parser.add_argument("old", type=Path, help="committed record")
    given = parser.parse_args(arguments)
    try:
        lines = compare(load_record(given.new), load_record(given.old))
    except UserError as error:
        print(f"canary: {one_line(error)}", file=sys.stderr)
        return 2
    for line in lines:
        print(line)
    breaches = [line.name for line in lines if not line.within]
    print(
        f"{len(lines)} scores, {len(breaches)} beyond tolerance"
        + (f": {', '.join(breaches)}" if breaches else "")
    )
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
