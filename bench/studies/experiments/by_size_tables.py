"""What follows from the distances of `memorization-by-size`: shares, EMM, and what labels do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.records.experiment import Cell, Column, Curves, ResultTable
from bench.statistics.memorized_share import (
    emm_bracket,
    emm_interval,
    emm_point,
    memorized,
    paired_shares,
    share_interval,
)

CONDITIONINGS = ("true", "random", "unique")
CLAIM = (
    "On CIFAR-10 random labels make a diffusion model memorize more than true ones or none, and"
    " unique labels still more; more training pictures make it memorize less. If that held here,"
    " the line of random labels would lie above that of true ones, and R would fall from 1 to 0"
    " over the sizes."
)
FLOORS = {"ideal": "ideal denoiser", "held_out": "held-out", "round_trips": "round trips"}


def about(settings: Mapping[str, Any]) -> list[str]:
    """What was asked, in sentences."""
    seeds = settings["seeds"]
    trainings = "One model" if seeds == 1 else f"{seeds} models of different seeds"
    return [
        f"{trainings} for each number N of training pictures and each kind of label, from random"
        f" weights ({settings['parameters']:,} parameters, predicting"
        f" {'v' if settings['predicts'] == 'v_prediction' else 'noise'}); every picture is shown"
        f" {settings['epochs']:,} times, whatever N is. The sets are nested, without duplicates"
        f" ({settings['duplicates_removed']} were removed), of {settings['classes']} classes.",
        'A caption is "class k": k is the true class, a class drawn at random, or the number of the'
        " picture. Nothing else differs: generation i begins with the same noise for every model.",
        f"R is the share of {settings['generations']} generations that are less than a third as far"
        " from the nearest training picture as from the second nearest (sums of squares over bytes,"
        " in whole numbers).",
    ]


def tables_of(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> list[ResultTable]:
    """All tables, of the raw distances alone."""
    measured = _Measured(raw, settings)
    return [
        measured.shares(
            "share",
            "Share of memorized generations R by number of training pictures N",
            "The last weights. Ideal denoiser: perfect memorization under the same sampler, the"
            " ceiling. Held-out: real pictures that nobody trained on, the floor. Round trips: the"
            " training pictures themselves through the autoencoder, which must give 1.",
            False,
        ),
        measured.shares(
            "share-decoded",
            "The same against what the autoencoder makes of the training pictures",
            "The autoencoder's error lengthens the distance to the nearest picture; here it is in"
            " both.",
            True,
        ),
        measured.snapshots(),
        measured.emm(),
        measured.differences(),
    ]


def found_in(tables: Sequence[ResultTable]) -> list[str]:
    """What the tables say of the claim, in sentences: shares at the least and the most pictures,
    and for each kind of labels whether R is clearly another one than that of true labels.
    """
    by_name = {table.name: table for table in tables}
    shares, labels = by_name["share"], by_name["labels"]
    least, most = shares.labels[0], shares.labels[-1]
    sentences = []
    if _labels("true") in [column.heading for column in shares.columns]:
        first, last = (_short(shares.cell(size, _labels("true"))) for size in (least, most))
        sentences.append(f"With true labels R is {first} at N = {least} and {last} at N = {most}.")
    for column in labels.columns:
        cell = labels.cell("all sizes", column.heading)
        low, high = cell.low or 0.0, cell.high or 0.0
        does = "raise R" if low > 0 else "lower R" if high < 0 else "do not clearly change R"
        kind = column.heading.partition(" −")[0].capitalize()
        sentences.append(f"{kind} {does}: {_short(cell)} against true ones, over all sizes.")
    return sentences


def _short(cell: Cell) -> str:
    if cell.value is None or cell.low is None or cell.high is None:
        return cell.note or "–"
    return f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]"


class _Measured:
    def __init__(self, raw: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.raw, self.settings = raw, settings
        self.sizes: list[int] = list(settings["sizes"])
        self.conditionings: list[str] = list(settings["conditionings"])

    def flags(
        self, size: int, conditioning: str, snapshot: int = -1, decoded: bool = False
    ) -> np.ndarray:
        """Which generations are memorized, bool `[seeds, M]`."""
        chosen = [
            training["snapshots"][snapshot]
            for training in self.raw["trainings"].values()
            if (training["size"], training["conditioning"]) == (size, conditioning)
        ]
        return np.stack([_flags(found, decoded) for found in chosen])

    def shares(self, name: str, title: str, means: str, decoded: bool) -> ResultTable:
        kinds = {kind: text for kind, text in FLOORS.items() if self.raw[kind]}
        cells = [
            [
                *(_share(self.flags(size, kind, decoded=decoded)) for kind in self.conditionings),
                *(_share(_flags(self.raw[kind][str(size)], decoded)[None]) for kind in kinds),
            ]
            for size in self.sizes
        ]
        headings = [*map(_labels, self.conditionings), *kinds.values()]
        return ResultTable(
            name=name,
            title=title,
            means=means,
            rows_are="N",
            columns=[Column(heading=heading) for heading in headings],
            labels=[str(size) for size in self.sizes],
            cells=cells,
            curves=Curves(
                x_name="training pictures N",
                y_name="share memorized R",
                columns=headings,
                logarithmic=True,
            ),
        )

    def chosen(self, size: int, kind: str) -> tuple[list[int], np.ndarray]:
        """The snapshot of each seed with the largest share in the first half of the generations
        (the latest among equals), and the flags of the other half, `[seeds, M / 2]`.
        """
        count = len(next(iter(self.raw["trainings"].values()))["snapshots"])
        every = np.stack([self.flags(size, kind, number) for number in range(count)])
        half = every.shape[2] // 2
        means = every[:, :, :half].mean(2)  # [snapshots, seeds]
        best = [count - 1 - int(np.argmax(means[::-1, seed])) for seed in range(means.shape[1])]
        return best, np.stack([every[place, seed, half:] for seed, place in enumerate(best)])

    def snapshots(self) -> ResultTable:
        cells, headings = [], list[str]()
        for size in self.sizes:
            row = []
            for kind in self.conditionings:
                best, flags = self.chosen(size, kind)
                steps = self._steps(size, kind)
                which = ", ".join(f"{steps[place]:,}" for place in best)
                last = _share(self.flags(size, kind)[:, flags.shape[1] :])
                row += [_share(flags, f"after {which} steps"), last]
            cells.append(row)
        for kind in self.conditionings:
            headings += [f"{_labels(kind)}, chosen", f"{_labels(kind)}, last"]
        return ResultTable(
            name="snapshots",
            title="R of the snapshot that memorizes most, and of the last one",
            means=(
                "Chosen on one half of the generations and reported on the other, because the"
                " largest of several shares is too large; the last snapshot on that same half."
            ),
            rows_are="N",
            columns=[Column(heading=heading) for heading in headings],
            labels=[str(size) for size in self.sizes],
            cells=cells,
        )

    def _steps(self, size: int, kind: str) -> list[int]:
        return next(
            [snapshot["step"] for snapshot in training["snapshots"]]
            for training in self.raw["trainings"].values()
            if (training["size"], training["conditioning"]) == (size, kind)
        )

    def emm(self) -> ResultTable:
        epsilon = self.settings["epsilon"]
        labels, cells = list[str](), list[list[Cell]]()
        for which in ("last", "chosen"):
            for kind in self.conditionings:
                flags = [
                    self.flags(size, kind) if which == "last" else self.chosen(size, kind)[1]
                    for size in self.sizes
                ]
                bounds = [share_interval(table) for table in flags]
                found = emm_bracket(self.sizes, bounds, epsilon)
                labels.append(f"{_labels(kind)}, {which} snapshot")
                cells.append(
                    [self._point(flags), _whole(found.low, "none"), _whole(found.high, "none")]
                )
        return ResultTable(
            name="emm",
            title=f"EMM: the most training pictures with R of at least {1 - epsilon:g}",
            means=(
                "Point: where the falling curve through the shares crosses that level, evenly in"
                " log N, with a bootstrap over trainings and generations. Bracket: the largest N"
                " whose interval lies above the level, and the smallest whose interval lies below."
            ),
            rows_are="labels",
            columns=[
                Column(heading="EMM", decimals=1),
                Column(heading="surely at", decimals=0),
                Column(heading="surely not at", decimals=0),
            ],
            labels=labels,
            cells=cells,
        )

    def _point(self, flags: Sequence[np.ndarray]) -> Cell:
        epsilon = self.settings["epsilon"]
        point = emm_point(self.sizes, np.array([table.mean() for table in flags]), epsilon)
        low, high = emm_interval(self.sizes, flags, epsilon)
        count = sum(table.size for table in flags)
        inside = all(0 < bound < math.inf for bound in (point, low, high))
        if inside:
            return Cell(value=point, low=low, high=high, n=count)
        note = f"{self._bound(low)} to {self._bound(high)}"
        return Cell(value=point if 0 < point < math.inf else None, n=count, note=note)

    def _bound(self, value: float) -> str:
        if value == 0:
            return f"below {self.sizes[0]}"
        return f"above {self.sizes[-1]}" if value == math.inf else f"{value:.1f}"

    def differences(self) -> ResultTable:
        """Random and unique labels against true ones, pair by pair of generations."""
        others = [kind for kind in self.conditionings if kind != "true"]
        if "true" not in self.conditionings:
            others = []
        labels = [*(f"{size}" for size in self.sizes), "all sizes"]
        cells = []
        for label in labels:
            sizes = self.sizes if label == "all sizes" else [int(label)]
            row = []
            for kind in others:
                mine, true = (
                    np.mean([self.flags(size, each) for size in sizes], axis=0)
                    for each in (kind, "true")
                )
                value, low, high = paired_shares(mine, true)
                row.append(Cell(value=value, low=low, high=high, n=mine.size * len(sizes)))
            cells.append(row)
        one = self.settings["seeds"] == 1
        return ResultTable(
            name="labels",
            title="By how much other labels raise R above that of true labels",
            means=(
                "Paired: generation i of both models begins with the same noise. "
                + (
                    "The interval is over generations of one training each, and says nothing of"
                    " how trainings differ."
                    if one
                    else "The interval reaches from the lowest to the highest bound of any"
                    " training, and of a bootstrap over trainings and generations."
                )
            ),
            rows_are="N",
            columns=[Column(heading=f"{_labels(kind)} − {_labels('true')}") for kind in others],
            labels=labels,
            cells=cells,
        )


def _flags(found: Mapping[str, Any], decoded: bool) -> np.ndarray:
    tail = "_decoded" if decoded else ""
    return memorized(np.array(found[f"first{tail}"]), np.array(found[f"second{tail}"]))


def _labels(kind: str) -> str:
    return f"{kind} labels"


def _share(flags: np.ndarray, note: str = "") -> Cell:
    low, high = share_interval(flags)
    return Cell(value=float(flags.mean()), low=low, high=high, n=flags.size, note=note)


def _whole(value: int | None, otherwise: str) -> Cell:
    return Cell(value=value, note="" if value is not None else otherwise)
