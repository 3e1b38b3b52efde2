"""The pictures of `bench analyze locality`, drawn from its tables; bytes of PNG files by name.

Figures are made without pyplot, so nothing global is changed and no window system is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.studies.drawing import png
from bench.studies.locality.populations import MEANING, NAMES, SEARCHED
from bench.studies.masks import ALL, Row

COLOURS = {
    "same": "tab:red",
    "different": "tab:blue",
    "clean": "tab:green",
    "control": "tab:orange",
    "noise": "tab:grey",
}
MARKS = {"same": "o", "different": "s", "clean": "^", "control": "D", "noise": "x"}


def pictures(
    tables: Mapping[str, list[Row]], facts: Mapping[str, Any], title: str
) -> dict[str, bytes]:
    """Every picture that the tables allow."""
    found = {
        "spread.png": _spread(facts["spread"], title),
        "activations.png": _activations(tables["activations"], title),
    }
    for method in facts["agreement"]:
        rows = [row for row in tables["agreement"] if row["method"] == method]
        found[f"agreement-{method}.png"] = _agreement(rows, method, title)
    if "transfer" in tables:
        found["transfer.png"] = _transfer(tables["transfer"], facts["transfer"], title)
    if "rounds" in tables:
        found["rounds.png"] = _rounds(tables["rounds"], title)
    return found


def _spread(facts: Mapping[str, Row], title: str) -> bytes:
    """Ends over beginnings, in the space of embeddings and in what the model predicts."""
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 4])
    for place, name in enumerate(SEARCHED):
        row = facts[name]
        error = row["ratio_error"]
        bars = 2 * error if error is not None and np.isfinite(error) else None
        left.errorbar(
            row["ratio"], place, xerr=bars, fmt=MARKS[name], color=COLOURS[name], capsize=3
        )
        left.plot(row["ratio_unrelated"], place, "|", color="black", markersize=14)
        left.plot(row["function_ratio"], place, MARKS[name], color=COLOURS[name], fillstyle="none")
    left.set_yticks(range(len(SEARCHED)), [MEANING[name] for name in SEARCHED])
    left.set_ylim(len(SEARCHED) - 0.5, -0.5)
    left.set_xlim(left=0)
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xlabel(
        "distance of ends over distance of beginnings\n"
        "● embeddings (black: had moves been unrelated)\n○ predictions"
    )
    shown = [name for name in NAMES if name != "noise"]
    for place, name in enumerate(shown):
        row = facts[name]
        right.barh(place, row["function"], color=COLOURS[name], height=0.55)
        if row["function_of_starts"] is not None:
            right.plot(row["function_of_starts"], place, "|", color="black", markersize=18)
    right.set_yticks(range(len(shown)), [MEANING[name] for name in shown])
    right.set_ylim(len(shown) - 0.5, -0.5)
    right.set_xlabel("difference of two predictions, for a value\n(black: where searches began)")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    return png(figure, f"How far apart are triggers, and do they act apart?\n{title}")


def _activations(table: Sequence[Row], title: str) -> bytes:
    """By layer the distance of activations over their size, one panel a view."""
    views = list(dict.fromkeys(row["view"] for row in table))
    layers = {
        view: list(dict.fromkeys(row["layer"] for row in table if row["view"] == view))
        for view in views
    }
    most = max(map(len, layers.values()))
    figure = Figure(figsize=(11, 2.6 + 0.34 * most), layout="constrained")
    for axes, view in zip(figure.subplots(1, len(views), squeeze=False)[0], views, strict=True):
        for name in NAMES:
            values = {
                row["layer"]: row["relative"]
                for row in table
                if row["view"] == view and row["population"] == name
            }
            _points(axes, [values[layer] for layer in layers[view]], name)
        _layer_axis(axes, layers[view])
        axes.set_title(view)
        axes.set_xlabel("distance of two activations over their size")
        axes.set_xlim(left=-0.02)
    _legend(figure)
    return png(figure, f"Do activations differ?\n{title}")


def _agreement(rows: Sequence[Row], method: str, title: str) -> bytes:
    """By layer the mean IoU of each population, with what chance gives."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure = Figure(figsize=(8.6, 3.0 + 0.36 * len(layers)), layout="constrained")
    axes = figure.subplots()
    table = {(row["layer"], row["population"]): row for row in rows}
    for name in NAMES:
        own = [table[layer, name] for layer in layers]
        _points(axes, [row["mean"] for row in own], name)
    chance = [table[layer, "same"]["chance"] for layer in layers]
    axes.plot(
        [np.nan if value is None else value for value in chance],
        range(len(layers)),
        "|",
        color="black",
        markersize=14,
        label="random weights, as many",
    )
    for place, layer in enumerate(layers):
        lacking = [
            f"{name} {row['undefined']}/{row['pairs']}"
            for name in NAMES
            if (row := table[layer, name])["undefined"]
        ]
        if lacking:
            axes.text(1.04, place, "empty: " + ", ".join(lacking), fontsize=7, va="center")
    _layer_axis(axes, layers)
    if ALL in layers:
        axes.axhline(len(layers) - 1.5, color="grey", linewidth=0.8)
    axes.set(xlim=(-0.02, 1.02), xlabel="mean intersection over union of found weights")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return png(figure, f"Do members have the same weights ({method})?\n{title}")


def _transfer(rows: Sequence[Row], facts: Row, title: str) -> bytes:
    """Heat maps of the share of copies, one for each population that pruned."""
    count = facts["triggers"]
    figure = Figure(figsize=(2.5 * len(NAMES) + 0.8, 4.2), layout="constrained")
    panels = figure.subplots(1, len(NAMES))
    for axes, name in zip(panels, NAMES, strict=True):
        own = [row for row in rows if row["pruned"] == name]
        down = 1 + max(row["pruned_member"] for row in own)
        matrix = np.full((down, count), np.nan)
        for row in own:
            matrix[row["pruned_member"], row["trigger"]] = row["copied"]
        axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis", aspect="equal")
        axes.set_title(f"pruned by\n{MEANING[name]}\nmean {matrix.mean():.2f}", fontsize=9)
        axes.set_xticks(range(0, count, 2))
        axes.set_yticks(range(0, down, 2))
        axes.set_xlabel("generated with trigger")
    panels[0].set_ylabel("pruned by member")
    figure.colorbar(panels[0].images[0], ax=list(panels), label="share of copies", shrink=0.7)
    nothing = f"{facts['method']}; nothing pruned: {facts['nothing']:.2f}"
    return png(figure, f"Does pruning by one stop another? ({nothing})\n{title}")


def _rounds(rows: Sequence[Row], title: str) -> bytes:
    """Copies by round, and what is left of alignment."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    places = [row["round"] for row in rows]
    axes.plot(places, [row["copied"] for row in rows], "o-", color=COLOURS["same"], label="copies")
    axes.plot(
        places,
        [row["copied_control"] for row in rows],
        "D-",
        color=COLOURS["control"],
        label="copies of the picture never trained on",
    )
    axes.set(ylim=(-0.02, 1.02), xlabel="rounds of pruning before the search", ylabel="share")
    axes.set_xticks(places)
    if rows[0]["clip_clean"] is not None:
        right = axes.twinx()
        values = [row["clip_clean"] for row in rows]
        right.plot(
            places, values, "^--", color=COLOURS["clean"], label="alignment of clean captions"
        )
        low, high = min(0.0, *values), max(0.0, *values)
        margin = 0.05 * ((high - low) or 1.0)
        right.set(ylabel="CLIP cosine", ylim=(low - margin * (low < 0), high + margin))
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return png(figure, f"Pruned and searched again\n{title}")


def _points(axes: Axes, values: Sequence[float | None], name: str) -> None:
    axes.plot(
        [np.nan if value is None else value for value in values],
        range(len(values)),
        MARKS[name],
        color=COLOURS[name],
        label=MEANING[name],
        alpha=0.8,
    )


def _layer_axis(axes: Axes, layers: Sequence[str]) -> None:
    axes.set_yticks(range(len(layers)), [_short(layer) for layer in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")


def _short(layer: str) -> str:
    """`down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v` as `down 1.0`."""
    if layer == ALL:
        return "all layers"
    place = layer.partition(".transformer_blocks.")[0]
    return re.sub(r"_blocks?\.", " ", place).replace("attentions.", "")
