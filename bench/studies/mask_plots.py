"""The pictures of `bench analyze masks`, drawn from the tables of `bench.studies.masks`; every
function returns the bytes of a PNG.

Figures are made without pyplot, so nothing global is changed and no window system is needed.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bench.studies.masks import ALL, UNION, Row

COLOURS = "viridis"
ABSENT = "#d9d9d9"  # a cell that has no value
LETTERS_PER_INCH = 9.5  # of a title
MOST_NUMBERED = 16  # cells across a heat map that still have room for their numbers


def density_picture(table: Sequence[Row], title: str) -> bytes:
    """Heat map of density, layer by call, with the union of calls apart on the right."""
    layers, calls = _distinct(table, "layer"), _distinct(table, "call")
    percent = 100 * _grid(table, "density", "layer", layers, "call", calls)
    times = {row["call"]: row["timestep"] for row in table}
    across = len(calls) - 1
    figure = Figure(
        figsize=(max(7.0, 3.6 + 0.56 * min(across, MOST_NUMBERED)), _height(layers)),
        layout="constrained",
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(across, 2), 1])
    top = float(percent.max()) or 1.0
    image = _heat_map(left, percent[:, :-1], 0, top, "{:.2f}")
    _heat_map(right, percent[:, -1:], 0, top, "{:.2f}")
    _set_apart_all(left, layers)
    _set_apart_all(right, layers)
    _call_ticks(left, [f"{call}\n{times[call]}" for call in calls if call != UNION])
    left.set_yticks(range(len(layers)), _labels(layers))
    left.set(xlabel="UNet call (above) and its timestep (below)", ylabel="layer")
    right.set_xticks([0], ["union\nof calls"])
    right.tick_params(axis="y", length=0)
    figure.colorbar(image, ax=[left, right], label="masked weights (% of the layer)")
    return _png(figure, title)


def subsets_picture(table: Sequence[Row], count: int, title: str) -> bytes:
    """Symmetric heat map of the IoU between the masks of `count` subsets, over all layers."""
    matrix = np.full((count, count), np.nan)
    for row in table:
        if row["layer"] == ALL and row["iou"] is not None:
            matrix[row["first"], row["second"]] = matrix[row["second"], row["first"]] = row["iou"]
    side = 3.2 + 0.42 * min(count, MOST_NUMBERED)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    image = _heat_map(axes, matrix, 0, 1, "{:.2f}")
    step = -(-count // (2 * MOST_NUMBERED))
    axes.set_xticks(range(0, count, step))
    axes.set_yticks(range(0, count, step))
    axes.set(xlabel="subset of fit prompts", ylabel="subset of fit prompts")
    figure.colorbar(image, ax=axes, label="intersection over union of masks", shrink=0.9)
    return _png(figure, title)


def calls_picture(table: Sequence[Row], title: str) -> bytes:
    """Heat map of the IoU between the masks of consecutive calls, layer by pair of calls."""
    layers, calls = _distinct(table, "layer"), _distinct(table, "call")
    values = _grid(table, "iou", "layer", layers, "call", calls)
    figure = Figure(
        figsize=(max(7.0, 3.4 + 0.6 * min(len(calls), MOST_NUMBERED)), _height(layers)),
        layout="constrained",
    )
    axes = figure.subplots()
    image = _heat_map(axes, values, 0, 1, "{:.2f}")
    _set_apart_all(axes, layers)
    _call_ticks(axes, [f"{call}–{call + 1}" for call in calls])
    axes.set_yticks(range(len(layers)), _labels(layers))
    axes.set(xlabel="two consecutive UNet calls", ylabel="layer")
    figure.colorbar(image, ax=axes, label="intersection over union of masks")
    return _png(figure, title)


def layers_picture(subsets: dict[str, Row], calls: dict[str, Row], title: str) -> bytes:
    """By layer, mean IoU between subsets with its range, what chance gives, and the mean between
    consecutive calls.
    """
    places = np.arange(len(subsets))
    figure = Figure(figsize=(7.6, _height(subsets) + 0.5), layout="constrained")
    axes = figure.subplots()
    means, low, high = (_column(subsets, key) for key in ("mean", "min", "max"))
    axes.hlines(
        places,
        low,
        high,
        color="tab:blue",
        linewidth=5,
        alpha=0.3,
        label="subsets of prompts: least to largest",
    )
    axes.plot(means, places, "o", color="tab:blue", label="subsets of prompts: mean")
    axes.plot(
        _column(subsets, "chance"),
        places,
        "|",
        color="black",
        markersize=13,
        markeredgewidth=2,
        label="random masks as dense as those of the subsets",
    )
    axes.plot(
        _column(calls, "mean"),
        places,
        "D",
        color="tab:orange",
        markerfacecolor="none",
        label="consecutive calls: mean",
    )
    for place in places[np.isnan(means)]:
        axes.text(
            0.5, place, "undefined: the masks are empty", ha="center", va="center", color="grey"
        )
    axes.set_yticks(places, _labels(subsets))
    axes.set(xlim=(-0.02, 1.02), xlabel="intersection over union of masks (0 to 1)", ylabel="layer")
    axes.set_ylim(len(subsets) - 0.5, -0.5)
    axes.axhline(len(subsets) - 1.5, color="grey", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return _png(figure, title)


def _heat_map(axes: Axes, values: np.ndarray, low: float, high: float, number: str) -> AxesImage:
    """Cells with their numbers where there is room; a cell without a value is grey, with a dash."""
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=COLOURS, vmin=low, vmax=high, aspect="auto"
    )
    axes.set_facecolor(ABSENT)
    if values.shape[1] <= MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value < (low + high) / 2 else "black"
            axes.text(
                column,
                row,
                number.format(value) if np.isfinite(value) else "–",
                ha="center",
                va="center",
                color=colour,
                fontsize=8.5,
            )
    return image


def _set_apart_all(axes: Axes, layers: Sequence[str]) -> None:
    """A white line above the last row, which stands for all layers."""
    axes.axhline(len(layers) - 1.5, color="white", linewidth=3)


def _call_ticks(axes: Axes, labels: Sequence[str]) -> None:
    step = -(-len(labels) // MOST_NUMBERED)
    axes.set_xticks(range(0, len(labels), step), labels[::step])


def _grid(
    table: Sequence[Row],
    value: str,
    down: str,
    rows: Sequence[Any],
    across: str,
    columns: Sequence[Any],
) -> np.ndarray:
    found = {(row[down], row[across]): row[value] for row in table}
    return np.array(
        [[np.nan if found[r, c] is None else found[r, c] for c in columns] for r in rows],
        dtype=np.float64,
    )


def _column(summaries: dict[str, Row], key: str) -> np.ndarray:
    return np.array(
        [np.nan if row[key] is None else row[key] for row in summaries.values()], dtype=np.float64
    )


def _distinct(table: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in table))


def _labels(layers: Sequence[str] | dict[str, Row]) -> list[str]:
    """Module names without the ending that all share, and `down_blocks.1.attentions.0` as `down
    1.0`.
    """
    names = [name for name in layers if name != ALL]
    parts = [name.split(".") for name in names]
    shared = 0
    while (
        len(parts) > 1
        and all(len(part) > shared + 1 for part in parts)
        and len({part[-shared - 1] for part in parts}) == 1
    ):
        shared += 1
    # An ending that is only a number means nothing alone: it stays with the name before it.
    while shared and parts[0][-shared].isdigit():
        shared -= 1
    short = [
        re.sub(r"_blocks?\.", " ", ".".join(part[: len(part) - shared])).replace("attentions.", "")
        for part in parts
    ]
    return [*short, *(["all layers"] if ALL in layers else [])]


def _height(layers: Sequence[str] | dict[str, Row]) -> float:
    return 1.9 + 0.34 * len(layers)


def _png(figure: Figure, title: str) -> bytes:
    """The bytes of the figure under its title, whose lines are broken where they are wider than the
    figure.
    """
    room = int(LETTERS_PER_INCH * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, room) for line in title.splitlines()))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
