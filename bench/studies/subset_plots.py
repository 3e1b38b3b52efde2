"""The pictures of `bench analyze subsets`, drawn from its tables; every function returns the bytes
of a PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.studies.drawing import heat_map, height_of, layer_labels, png, set_apart_all
from bench.studies.masks import ALL, UNION, Row
from bench.studies.subset_models import BESIDE, NONE, RANDOM

OWN_COLOUR, RANDOM_COLOUR = "tab:blue", "tab:orange"
LINES = {NONE: ("black", "-"), BESIDE: ("tab:green", "--")}
JITTER = 0.012  # of the axis, between the points of the method and those of random masks
PANELS = {  # scores and what stands at their axis
    "copies": "share of copies,\nheld-out memorized prompts",
    "sscd": "similarity to the training picture\n(SSCD), held-out prompts",
    "clip_clean": "CLIP score, clean prompts",
    "copies_left_out": "share of copies,\nfit prompts outside the subset",
    "fid": "FID (one subset a size)",
}
AGREEMENTS = {  # columns of the table of agreement: line, marker and legend
    "models": ("-", "o", "other subset, same seed"),
    "seeds": ("--", "s", "same subset, other seed"),
    "none": (":", "^", "without mitigation, same seed"),
}


def calls_picture(table: Sequence[Row], value: str, label: str, title: str) -> bytes:
    """Heat maps of a column of the table of calls, layer by call, one for each size; the union of
    calls stands on the right of each.
    """
    sizes, layers, calls = (
        list(dict.fromkeys(row[key] for row in table)) for key in ("size", "layer", "call")
    )
    found = {(row["size"], row["layer"], row["call"]): row[value] for row in table}
    cells = np.array(
        [
            [[_number(found[size, layer, call]) for call in calls] for layer in layers]
            for size in sizes
        ],
        dtype=np.float64,
    )
    known = cells[np.isfinite(cells)]
    top = 1.0 if value.startswith("iou") else float(known.max(initial=0)) or 1.0
    width = 1.6 + 0.24 * len(calls)
    figure = Figure(
        figsize=(max(7.0, 2.6 + width * len(sizes)), height_of(layers) + 0.3), layout="constrained"
    )
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size, values in zip(panels, sizes, cells, strict=True):
        # Too many cells for numbers: the tables have them.
        image = heat_map(axes, values, 0, top, "")
        set_apart_all(axes, layers)
        axes.axvline(len(calls) - 1.5, color="white", linewidth=3)
        shown = [place for place in range(len(calls) - 1) if place % 3 == 0]
        axes.set_xticks([*shown, len(calls) - 1], [*map(str, shown), "all"])
        axes.set(title=f"{size} prompts", xlabel="UNet call")
    panels[0].set_yticks(range(len(layers)), layer_labels(layers))
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels), label=label)
    return png(figure, title)


def iou_picture(table: Sequence[Row], title: str) -> bytes:
    """The IoU of masks united over calls and layers, by size of the subsets: mean and range, and
    what random masks of the same sizes have.
    """
    rows = [row for row in table if row["layer"] == ALL and row["call"] == UNION]
    sizes = [row["size"] for row in rows]
    columns = {key: [_number(row[key]) for row in rows] for key in ("iou_mean", "chance_iou")}
    low, high = ([_number(row[key]) for row in rows] for key in ("iou_min", "iou_max"))
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.vlines(sizes, low, high, color=OWN_COLOUR, alpha=0.3, linewidth=6)
    axes.plot(sizes, columns["iou_mean"], "o-", color=OWN_COLOUR, label="two subsets")
    axes.plot(
        sizes, columns["chance_iou"], "_--", color="black", markersize=12, label="random masks"
    )
    axes.set(ylim=(0, 1.02), xlabel="prompts of a subset", ylabel="intersection over union")
    _size_ticks(axes, sizes)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return png(figure, title)


def scores_picture(models: Sequence[Row], sizes: Sequence[Row], title: str) -> bytes:
    """What models of subsets do on prompts outside their subset: a point for each model, a line
    through the means; `none` and what stands beside it as horizontal lines.
    """
    shown = {
        score: label
        for score, label in PANELS.items()
        if any(row[score] is not None and row["size"] is not None for row in models)
    }
    figure = Figure(figsize=(1 + 3.9 * len(shown), 4.4), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    present = sorted({row["size"] for row in sizes if row["size"] is not None})
    for axes, (score, label) in zip(panels, shown.items(), strict=True):
        for kind, (colour, line) in LINES.items():
            for row in models:
                if row["kind"] == kind and row[score] is not None:
                    axes.axhline(row[score], color=colour, linestyle=line, label=kind)
        for kind, colour, aside in _kinds(sizes):
            shift = aside * JITTER * (present[-1] - present[0] or 1)
            own = [row for row in models if row["kind"] == kind and row[score] is not None]
            places = [row["size"] + shift for row in own]
            axes.plot(places, [row[score] for row in own], "o", color=colour, alpha=0.3)
            means = [row for row in sizes if row["kind"] == kind and row[score] is not None]
            axes.plot(
                [row["size"] + shift for row in means],
                [row[score] for row in means],
                "D-",
                color=colour,
                markeredgecolor="white",
                label=f"{kind}, mean of subsets",
            )
        axes.set(xlabel="prompts of a subset", ylabel=label)
        if score.startswith("copies"):
            axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # points at zero are seen whole
        _size_ticks(axes, present)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, fontsize="small", frameon=False
    )
    return png(figure, title)


def agreement_picture(table: Sequence[Row], title: str) -> bytes:
    """How alike pictures of models of different subsets are, beside pictures of other seeds and
    those without mitigation; one panel for the method and one for random masks.
    """
    kinds = _kinds(table)
    figure = Figure(figsize=(1.5 + 4.2 * len(kinds), 4.6), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    seeds = next(row["seeds"] for row in table if row["kind"] == NONE)
    for axes, (kind, colour, _) in zip(panels, kinds, strict=True):
        rows = [row for row in table if row["kind"] == kind]
        sizes = [row["size"] for row in rows]
        # Side by side, so that intervals do not cover each other.
        for aside, (column, (line, marker, label)) in enumerate(AGREEMENTS.items()):
            places = [size + (aside - 1) * JITTER * (sizes[-1] - sizes[0] or 1) for size in sizes]
            values, low, high = (
                np.array([_number(row[key]) for row in rows], dtype=np.float64)
                for key in (column, f"{column}_low", f"{column}_high")
            )
            axes.plot(places, values, line, marker=marker, color=colour, label=label)
            axes.vlines(places, low, high, color=colour, alpha=0.3, linewidth=3)
        if seeds is not None:
            axes.axhline(seeds, color="black", label="without mitigation, other seed")
        axes.set(title=kind, xlabel="prompts of a subset")
        _size_ticks(axes, sizes)
        axes.legend(frameon=False, fontsize="small")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="mean similarity of two pictures", ylim=(0, 1.05))
    return png(figure, title)


def pictures_picture(columns: Mapping[str, Sequence[np.ndarray]], title: str) -> bytes:
    """Pictures of the same prompts and seeds, one row a prompt and one column a model; all of one
    shape `[H, W, 3]`.
    """
    rows = len(next(iter(columns.values())))
    figure = Figure(
        figsize=(max(6.4, 1.25 * len(columns)), 1.1 + 1.15 * rows), layout="constrained"
    )
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for place, (name, pictures) in enumerate(columns.items()):
        grid[0, place].set_title(name, fontsize="small")
        for axes, picture in zip(grid[:, place], pictures, strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
    return png(figure, title)


def _kinds(table: Sequence[Row]) -> list[tuple[str, str, int]]:
    """The kinds that have sizes, the method first: name, colour, and the side of their points."""
    found = dict.fromkeys(row["kind"] for row in table if row["size"] is not None)
    return [
        (kind, RANDOM_COLOUR, 1) if kind == RANDOM else (kind, OWN_COLOUR, -1) for kind in found
    ]


def _size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xticks(list(sizes), [str(size) for size in sizes])


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
