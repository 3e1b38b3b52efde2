"""The pictures of `bench analyze masks`, drawn from the tables of `bench.studies.masks`; every
function returns the bytes of a PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.studies.drawing import (
    MOST_NUMBERED,
    call_ticks,
    heat_map,
    height_of,
    layer_labels,
    png,
    set_apart_all,
)
from bench.studies.masks import ALL, UNION, Row


def density_picture(table: Sequence[Row], title: str) -> bytes:
    """Heat map of density, layer by call, with the union of calls apart on the right."""
    layers, calls = _distinct(table, "layer"), _distinct(table, "call")
    percent = 100 * _grid(table, "density", "layer", layers, "call", calls)
    times = {row["call"]: row["timestep"] for row in table}
    across = len(calls) - 1
    figure = Figure(
        figsize=(max(7.0, 3.6 + 0.56 * min(across, MOST_NUMBERED)), height_of(layers)),
        layout="constrained",
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(across, 2), 1])
    top = float(percent.max()) or 1.0
    image = heat_map(left, percent[:, :-1], 0, top, "{:.2f}")
    heat_map(right, percent[:, -1:], 0, top, "{:.2f}")
    set_apart_all(left, layers)
    set_apart_all(right, layers)
    call_ticks(left, [f"{call}\n{times[call]}" for call in calls if call != UNION])
    left.set_yticks(range(len(layers)), layer_labels(layers))
    left.set(xlabel="UNet call (above) and its timestep (below)", ylabel="layer")
    right.set_xticks([0], ["union\nof calls"])
    right.tick_params(axis="y", length=0)
    figure.colorbar(image, ax=[left, right], label="masked weights (% of the layer)")
    return png(figure, title)


def subsets_picture(table: Sequence[Row], count: int, title: str) -> bytes:
    """Symmetric heat map of the IoU between the masks of `count` subsets, over all layers."""
    matrix = np.full((count, count), np.nan)
    for row in table:
        if row["layer"] == ALL and row["iou"] is not None:
            matrix[row["first"], row["second"]] = matrix[row["second"], row["first"]] = row["iou"]
    side = 3.2 + 0.42 * min(count, MOST_NUMBERED)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    image = heat_map(axes, matrix, 0, 1, "{:.2f}")
    step = -(-count // (2 * MOST_NUMBERED))
    axes.set_xticks(range(0, count, step))
    axes.set_yticks(range(0, count, step))
    axes.set(xlabel="subset of fit prompts", ylabel="subset of fit prompts")
    figure.colorbar(image, ax=axes, label="intersection over union of masks", shrink=0.9)
    return png(figure, title)


def calls_picture(table: Sequence[Row], title: str) -> bytes:
    """Heat map of the IoU between the masks of consecutive calls, layer by pair of calls."""
    layers, calls = _distinct(table, "layer"), _distinct(table, "call")
    values = _grid(table, "iou", "layer", layers, "call", calls)
    figure = Figure(
        figsize=(max(7.0, 3.4 + 0.6 * min(len(calls), MOST_NUMBERED)), height_of(layers)),
        layout="constrained",
    )
    axes = figure.subplots()
    image = heat_map(axes, values, 0, 1, "{:.2f}")
    set_apart_all(axes, layers)
    call_ticks(axes, [f"{call}–{call + 1}" for call in calls])
    axes.set_yticks(range(len(layers)), layer_labels(layers))
    axes.set(xlabel="two consecutive UNet calls", ylabel="layer")
    figure.colorbar(image, ax=axes, label="intersection over union of masks")
    return png(figure, title)


def layers_picture(subsets: dict[str, Row], calls: dict[str, Row], title: str) -> bytes:
    """By layer, mean IoU between subsets with its range, what chance gives, and the mean between
    consecutive calls.
    """
    places = np.arange(len(subsets))
    figure = Figure(figsize=(7.6, height_of(subsets) + 0.5), layout="constrained")
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
    axes.set_yticks(places, layer_labels(subsets))
    axes.set(xlim=(-0.02, 1.02), xlabel="intersection over union of masks (0 to 1)", ylabel="layer")
    axes.set_ylim(len(subsets) - 0.5, -0.5)
    axes.axhline(len(subsets) - 1.5, color="grey", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return png(figure, title)


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
