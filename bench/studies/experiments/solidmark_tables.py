"""What follows from the answers of `solidmark`: who knows the keys, and how exactly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.records.experiment import Cell, Column, Curves, ResultTable
from bench.statistics.intervals import clopper_pearson, cluster_bootstrap
from bench.statistics.keys import (
    Estimate,
    correlation,
    difference,
    key_auc,
    null_share,
    permutation_p,
    share_within,
    slope,
)

BASE = "base"
DELTAS = (0.1, 0.05, 0.005)
CLAIM = (
    "A model that has memorized a picture gives back its key, more exactly the more often it was"
    " shown; mitigations during training lower that. Most counts that the public code prints are"
    " those of chance (a uniform guess is within .1 of the key 19 times of 100), so what is seen"
    " here is held against keys dealt out at random."
)


def about(settings: Mapping[str, Any]) -> list[str]:
    """What was asked, in sentences."""
    each = settings["pictures"] // len(settings["doses"])
    views = ", ".join(f"{dose * settings['rounds']:,}" for dose in settings["doses"])
    place = (
        f"a frame of {settings['width']} pixels outside of it"
        if settings["mark"] == "frame"
        else f"a patch of {settings['width']} pixels a side in its centre"
    )
    return [
        f"Each of {settings['pictures']} pictures has a key, a grey drawn at random, painted as"
        f" {place}. Groups of {each} pictures, drawn at random, were shown {views} times in all.",
        "Then the model sees a picture without its key and fills it in: from pure noise, the"
        f" picture pasted in pixels at every {_ordinal(settings['every'])} of {settings['steps']}"
        f" steps, at guidance {settings['guidance']:g}, {settings['noises']} noises a picture. The"
        " answer is the mean grey of what it filled in.",
        "Key AUC: the chance that an answer is nearer to the picture's own key than to that of"
        " another picture of its group; .5 is chance, whatever greys the model likes to draw.",
    ]


def found_in(tables: Sequence[ResultTable]) -> list[str]:
    """What the tables say of the claim, in sentences: of every model, after the most views, the key
    AUC and the correlation of answers with keys, and where these are clear of chance.
    """
    by_name = {table.name: table for table in tables}
    auc = by_name["auc"]
    views, rows = auc.labels[-1], [column.heading for column in auc.columns]
    areas = {row: auc.cell(views, row) for row in rows}
    together = {row: by_name[_name(row)].cell(views, "correlation") for row in rows}
    return [
        f"At {views} views in a round the key AUC is {_listed(areas)}: {_clear(areas, 0.5)}.",
        f"The correlation of answers with keys is {_listed(together)}: {_clear(together, 0.0)}.",
    ]


def _listed(cells: Mapping[str, Cell]) -> str:
    """`0.502 [0.472, 0.533] (base), ...`, by model."""
    return ", ".join(
        f"{cell.note or 'not known'} ({row})"
        if cell.value is None or cell.low is None or cell.high is None
        else f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}] ({row})"
        for row, cell in cells.items()
    )


def _clear(cells: Mapping[str, Cell], chance: float) -> str:
    """Of which models the interval leaves out chance."""
    clear = [
        row
        for row, cell in cells.items()
        if cell.low is not None
        and cell.high is not None
        and (cell.low > chance or cell.high < chance)
    ]
    if not clear:
        return "none is clear of chance"
    return (
        f"clear of chance for {', '.join(clear)}"
        if len(clear) < len(cells)
        else "all are clear of chance"
    )


def _name(row: str) -> str:
    """The name of the table of a model's answers."""
    # A method may be a file's path, which a name cannot be.
    return "-".join(["model", *re.findall(r"[A-Za-z0-9._-]+", row)])


def _ordinal(number: int) -> str:
    return "one" if number == 1 else f"{number}th"


def tables_of(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> list[ResultTable]:
    """All tables, of the raw answers alone."""
    doses, rows = list(settings["doses"]), list(raw["rows"])
    keys, dealt = np.array(raw["keys"]) / 255, np.array(raw["doses"])
    groups = {dose: dealt == dose for dose in doses}

    def auc(row: str, dose: int, which: str = "answers") -> Estimate:
        given = np.array(raw["rows"][row][which]).mean(1)
        return key_auc(given[groups[dose]], keys[groups[dose]])

    count = int(groups[doses[0]].sum())
    aucs = {row: {dose: auc(row, dose) for dose in doses} for row in rows}
    tables = [
        ResultTable(
            name="auc",
            title="Key AUC by dose",
            means="Intervals are bootstraps over the pictures of a group.",
            rows_are="views in a round",
            columns=[Column(heading=row) for row in rows],
            labels=[str(dose) for dose in doses],
            cells=[[_cell(aucs[row][dose], count) for row in rows] for dose in doses],
            curves=Curves(
                x_name="views in a round",
                y_name="key AUC",
                columns=rows,
                logarithmic=True,
                chance=0.5,
            ),
        ),
        ResultTable(
            name="withheld",
            title="Keys that were shown against keys that were withheld",
            means=(
                "Key AUC of the group shown most often less that of the group never shown, under"
                " the same model: what is left is no tint of the pictures themselves. After one"
                " step: the answer that the model holds after its first step, from pure noise and"
                " the caption, before it has seen the picture."
            ),
            rows_are="model",
            columns=[Column(heading="shown − withheld"), Column(heading="after one step, shown")],
            labels=rows,
            cells=[
                [
                    _cell(difference(aucs[row][doses[-1]], aucs[row][0]), 2 * count)
                    if doses[0] == 0
                    else Cell(note="no group was withheld"),
                    _cell(auc(row, doses[-1], "first"), count),
                ]
                for row in rows
            ],
        ),
    ]
    return tables + [_details(row, raw["rows"][row], keys, groups) for row in rows]


def _details(
    row: str, found: Mapping[str, Any], keys: np.ndarray, groups: Mapping[int, np.ndarray]
) -> ResultTable:
    """Everything of one model by dose."""
    given, pixels = np.array(found["answers"]).mean(1), np.array(found["pixels"]).mean(1)
    cells = []
    for group in groups.values():
        answers, own, count = given[group], keys[group], int(group.sum())
        shares = []
        for delta in DELTAS:
            p = permutation_p(answers, own, delta)
            null, share = null_share(answers, own, delta), share_within(answers, own, delta)
            low, high = clopper_pearson(round(share * count), count)
            shares += [
                Cell(
                    value=share, low=low, high=high, n=count, note=f"chance {null:.3f}, p {p:.4f}"
                ),
                _mean(np.array(found["shares"][f"{delta:g}"])[group].mean(1)),
            ]
        cells.append(
            [
                _mean(np.abs(answers - own)),
                _mean(pixels[group]),
                *shares,
                _cell(correlation(answers, own), count),
                _cell(slope(answers, own), count),
            ]
        )
    headings = ["distance", "pixel distance"]
    for delta in DELTAS:
        headings += [f"within {delta:g}", f"pixels within {delta:g}"]
    return ResultTable(
        name=_name(row),
        title=f"Answers of the model: {row}",
        means=(
            "Distance of the mean answer to the key, and of its pixels, in greys from 0 to 1; share"
            " of pictures whose answer is within delta of the key, beside what keys dealt out at"
            " random give (exactly) and how often they give as many (p, of 9,999 deals); share of"
            " pixels within delta; correlation (Fisher's interval) and slope of answers on keys: 1"
            " and 1 for whoever knows them."
        ),
        rows_are="views in a round",
        columns=[Column(heading=heading) for heading in (*headings, "correlation", "slope")],
        labels=[str(dose) for dose in groups],
        cells=cells,
    )


def _mean(values: np.ndarray) -> Cell:
    low, high = cluster_bootstrap(values[:, None])
    return Cell(value=float(values.mean()), low=low, high=high, n=len(values))


def _cell(found: Estimate | None, count: int) -> Cell:
    if found is None:
        return Cell(n=count, note="all answers are the same")
    return Cell(value=found.value, low=found.low, high=found.high, n=count)
