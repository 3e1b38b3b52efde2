"""Contact sheets of the testbed, for people to look at: PNG files of pictures enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

SIDE = 64  # pixels of one picture on a sheet
GAP, TITLE = 12, 22


def enlarged(picture: np.ndarray, side: int = SIDE) -> Image.Image:
    return Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)


def write_grid(path: Path, pictures: Sequence[np.ndarray], across: int) -> None:
    """All pictures in rows of `across`, in reading order."""
    sheet = Image.new("RGB", (across * SIDE, -(-len(pictures) // across) * SIDE), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(enlarged(picture), (index % across * SIDE, index // across * SIDE))
    _save(sheet, path)


def level_title(kind: str, views: int) -> str:
    """What a level of canaries is called on a sheet: 0 views are those that were never shown."""
    if not views:
        return f"{kind}, never shown"
    return f"{kind}, {views} view{'s' if views > 1 else ''}"


def write_blocks(
    path: Path,
    blocks: Sequence[tuple[str, Sequence[Sequence[np.ndarray]]]],
    across: int = 4,
    originals: bool = True,
) -> None:
    """Titled blocks of rows of pictures, so many blocks across.

    With `originals`, each row begins with a training picture, and a white line sets it apart from
    what was generated for its caption.
    """
    columns = max(len(row) for _, rows in blocks for row in rows)
    lines = max(len(rows) for _, rows in blocks)
    width, height = columns * SIDE + GAP, TITLE + lines * SIDE + GAP
    size = (across * width - GAP, -(-len(blocks) // across) * height - GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, rows) in enumerate(blocks):
        left, top = number % across * width, number // across * height
        draw.text((left, top + 5), title, fill="black")
        for line, row in enumerate(rows):
            upper = top + TITLE + line * SIDE
            for column, picture in enumerate(row):
                sheet.paste(enlarged(picture), (left + column * SIDE, upper))
            if originals:
                edge = left + SIDE
                draw.line([(edge, upper), (edge, upper + SIDE)], fill="white", width=3)
    _save(sheet, path)


def write_curve(path: Path, levels: dict[str, dict[str, Any]], pristine: float | None) -> None:
    """Share of images copied over the number of views, with 95 % intervals over scenes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    views = sorted(levels, key=int)
    shares = [levels[level]["images"] for level in views]
    intervals = [levels[level]["images_interval"] for level in views]
    below = [share - low for share, (low, _) in zip(shares, intervals, strict=True)]
    above = [high - share for share, (_, high) in zip(shares, intervals, strict=True)]
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    # Levels stand side by side, whatever lies between them: on any scale of views some overlap.
    places = range(len(views))
    axes.errorbar(places, shares, yerr=np.clip([below, above], 0, 1), marker="o", capsize=4)
    if pristine is not None:
        axes.axhline(pristine, color="grey", linestyle=":", label=f"never shown: {pristine:.2f}")
        axes.legend(loc="upper left")
    names = [f"{level}\n({levels[level]['scenes_shown']})" for level in views]
    axes.set_xticks(list(places), names)
    axes.set(
        xlabel="views in the whole training (scenes)",
        ylabel="share of images copied",
        ylim=(-0.03, 1.03),
    )
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _save(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
