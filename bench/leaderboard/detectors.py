"""The board of detectors: what each score is worth, worked out from the files of `bench detect`.

Nothing is chosen here: orientation is declared by the detector, and the threshold comes from
calibration prompts that are judged by nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.base.names import detectors_page
from bench.leaderboard.cells import number
from bench.records.detection import COPIED, Detection
from bench.statistics.detection import (
    Operating,
    area,
    area_interval,
    at_rate,
    at_threshold,
    newcombe,
    roc,
)
from bench.statistics.units import Units

RATE = 0.01  # false alarms among clean prompts
DECIMALS = 3
CLEAN, MEMORIZED, CALIBRATION = "clean", "memorized", "calibration"


@dataclass(frozen=True)
class Area:
    """An area under the ROC curve with its 95 % interval, and what it was measured on."""

    value: float
    low: float
    high: float
    positives: int
    negatives: int

    @property
    def text(self) -> str:
        """`0.987 [0.970, 0.995]`."""
        bounds = ", ".join(number(bound, DECIMALS) for bound in (self.low, self.high))
        return f"{number(self.value, DECIMALS)} [{bounds}]"


def _area(
    positives: np.ndarray, negatives: np.ndarray, units: tuple[Units | None, Units | None]
) -> Area | None:
    if not len(positives) or not len(negatives):
        return None
    low, high = area_interval(positives, negatives, units)
    return Area(area(positives, negatives), low, high, len(positives), len(negatives))


@dataclass(frozen=True)
class DetectorRow:
    """One detector: its file, and every number of it."""

    record: Detection

    @property
    def label(self) -> str:
        return self.record.label

    @property
    def is_floor(self) -> bool:
        """Whether it reads the caption alone: what every other detector has to beat."""
        return self.record.needs == "text"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of prompts that are not memorized, clean first, then those that are hard."""
        found = [kind for kind in self.record.scores if kind not in (MEMORIZED, CALIBRATION)]
        return tuple(sorted(found, key=lambda kind: (kind != CLEAN, kind)))

    def positives(self, first: bool = False, listed: bool = False) -> np.ndarray:
        """One score a memorized prompt: of those that the model copies, or of all that are listed.
        `first`: of the first image alone.
        """
        table = self._table(MEMORIZED, first)
        return np.array([table[prompt] for prompt in self._positive(first, listed)])

    def _positive(self, first: bool, listed: bool) -> list[str]:
        """The prompts of `positives`."""
        copied = self.record.copied
        return [
            prompt
            for prompt in sorted(self._table(MEMORIZED, first))
            if listed or copied is None or copied[prompt] >= COPIED
        ]

    def others(self, kind: str, first: bool = False) -> np.ndarray:
        """One score a prompt of another kind."""
        return np.array([score for _, score in sorted(self._table(kind, first).items())])

    def _table(self, kind: str, first: bool) -> Mapping[str, float]:
        return (self.record.of_first if first else self.record.of_prompt).get(kind, {})

    def area(self, kind: str, first: bool = False, listed: bool = False) -> Area | None:
        """Copied prompts (or all that are listed) against those of a kind."""
        units = (
            self.record.units(MEMORIZED, self._positive(first, listed)),
            self.record.units(kind, sorted(self._table(kind, first))),
        )
        return _area(self.positives(first, listed), self.others(kind, first), units)

    def area_of_images(self, kind: str) -> Area | None:
        """Images that are copies against all images of a kind, one score an image.

        Images of a prompt hang together, so the interval is Newcombe's for as many as there are
        prompts, or clusters of them. None for a detector that gives one score a prompt.
        """
        copies, scores = self.record.copies, self.record.scores
        found = [
            score
            for prompt, flags in copies.items()
            for score, flag in zip(scores[MEMORIZED][prompt], flags, strict=False)
            if flag and len(scores[MEMORIZED][prompt]) == len(flags)
        ]
        against = [score for row in scores.get(kind, {}).values() for score in row]
        if not found or any(len(row) != self.record.images for row in scores[kind].values()):
            return None
        positives, negatives = np.array(found), np.array(against)
        copied = [prompt for prompt, flags in copies.items() if any(flags)]
        value = area(positives, negatives)
        low, high = newcombe(
            value, self._count(MEMORIZED, copied), self._count(kind, list(scores[kind]))
        )
        return Area(value, low, high, len(found), len(against))

    def _count(self, kind: str, prompts: Sequence[str]) -> int:
        """How many units these prompts are."""
        units = self.record.units(kind, prompts)
        return len(units.strata) if units else len(prompts)

    @cached_property
    def at_rate(self) -> Operating | None:
        """The threshold that one in a hundred clean prompts exceeds."""
        return at_rate(self.positives(), self.others(CLEAN), RATE)

    @cached_property
    def calibrated(self) -> Operating | None:
        """The threshold that one in a hundred calibration prompts exceeds, which a user would set,
        on copied and on clean prompts.
        """
        found = at_rate(self.positives(), self.others(CALIBRATION), RATE)
        if found is None:
            return None
        return at_threshold(self.positives(), self.others(CLEAN), found.threshold, found.allowed)

    def alarms(self, kind: str) -> float | None:
        """Share of the prompts of a kind above the calibrated threshold."""
        if self.calibrated is None or not len(others := self.others(kind)):
            return None
        return float((others > self.calibrated.threshold).mean())

    def curve(self, kind: str) -> list[tuple[float, float]]:
        """The ROC curve of copied prompts against those of a kind."""
        return roc(self.positives(), self.others(kind))


@dataclass(frozen=True)
class DetectorBoard:
    """The detectors of one suite under one protocol, best against the hardest negatives first;
    floors last.
    """

    suite: str
    rows: tuple[DetectorRow, ...]
    apart: tuple[tuple[Detection, str], ...]
    damaged: tuple[str, ...]

    @property
    def page(self) -> str:
        """The name of its files, without ending."""
        return detectors_page(self.suite)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of negatives that some row has."""
        return tuple(dict.fromkeys(kind for row in self.rows for kind in row.kinds))

    @property
    def hardest(self) -> str:
        """The kind by which rows are ordered: one that the suite names, else clean."""
        return next((kind for kind in self.kinds if kind != CLEAN), CLEAN)

    @property
    def images(self) -> int:
        return self.rows[0].record.images


def make_detector_boards(
    records: Sequence[Detection], damaged: Sequence[tuple[str, str]]
) -> list[DetectorBoard]:
    """One board a suite: of the protocol that most of its files have, the newest version among
    equals; the others are named as not ranked.
    """
    suites = sorted({record.suite for record in records} | {suite for suite, _ in damaged})
    boards = []
    for suite in suites:
        own = [record for record in records if record.suite == suite]
        counts = Counter((record.protocol, record.suite_version) for record in own)
        if not counts:
            continue
        protocol, _ = max(counts, key=lambda key: (counts[key], key[1], key[0]))
        rows = [DetectorRow(record) for record in own if record.protocol == protocol]
        apart = [
            (record, "scored under another protocol")
            for record in own
            if record.protocol != protocol
        ]
        board = DetectorBoard(suite, tuple(rows), tuple(apart), ())
        ordered = sorted(rows, key=lambda row: _order(row, board.hardest))
        why = tuple(why for place, why in damaged if place == suite)
        boards.append(DetectorBoard(suite, tuple(ordered), tuple(apart), why))
    return boards


def _order(row: DetectorRow, kind: str) -> tuple[bool, float, float, str]:
    against, clean = row.area(kind), row.area(CLEAN)
    return (
        row.is_floor,
        -(against.value if against else 0.0),
        -(clean.value if clean else 0.0),
        row.label,
    )


def in_words(record: Detection) -> str:
    """One detector for the terminal."""
    row = DetectorRow(record)
    lines = [f"{row.label} on {record.suite}: {len(row.positives())} memorized prompts"]
    for kind in row.kinds:
        found = row.area(kind)
        if found:
            lines.append(f"  against {found.negatives} {kind} prompts: AUC {found.text}")
    if row.at_rate:
        lines.append(
            f"  finds {row.at_rate.found:.1%} where at most {row.at_rate.allowed} of"
            f" {len(row.others(CLEAN))} clean prompts raise a false alarm"
        )
    if row.calibrated:
        alarms = ", ".join(
            f"{share:.1%} of {kind}"
            for kind in row.kinds
            if (share := row.alarms(kind)) is not None
        )
        lines.append(
            f"  at the threshold of calibration prompts: finds {row.calibrated.found:.1%}; alarms"
            f" at {alarms}"
        )
    lines.append(
        f"  costs {record.rows_on_top:g} row evaluations an image on top of generation,"
        f" {record.rows_alone:g} alone"
    )
    return "\n".join(lines)
