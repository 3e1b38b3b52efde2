"""What the pictures of the analyses of masks share: heat maps, names of layers, and how a figure
becomes a PNG.

Figures are made without pyplot, so nothing global is changed and no window system is needed.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bench.studies.masks import ALL

COLOURS = "viridis"
ABSENT = "#d9d9d9"  # a cell that has no value
LETTERS_PER_INCH = 9.5  # of a title
MOST_NUMBERED = 16  # cells across a heat map that still have room for their numbers


def heat_map(axes: Axes, values: np.ndarray, low: float, high: float, number: str) -> AxesImage:
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


def set_apart_all(axes: Axes, layers: Sequence[str]) -> None:
    """A white line above the last row, which stands for all layers."""
    axes.axhline(len(layers) - 1.5, color="white", linewidth=3)


def call_ticks(axes: Axes, labels: Sequence[str]) -> None:
    step = -(-len(labels) // MOST_NUMBERED)
    axes.set_xticks(range(0, len(labels), step), labels[::step])


def layer_labels(layers: Collection[str]) -> list[str]:
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


def height_of(layers: Collection[str]) -> float:
    """Inches of a figure with one row for each layer."""
    return 1.9 + 0.34 * len(layers)


def png(figure: Figure, title: str) -> bytes:
    """The bytes of the figure under its title, whose lines are broken where they are wider than the
    figure.
    """
    room = int(LETTERS_PER_INCH * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, room) for line in title.splitlines()))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
