"""The one page of an audit: a pure function of what was found and of the pictures beside it.

It holds training pictures, and asks nothing of the network.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bench.auditing.result import Found, PictureFound, Row
from bench.auditing.verdicts import Share
from bench.base.errors import UserError
from bench.base.pictures import read_image
from bench.leaderboard.charts import ticks
from bench.leaderboard.templating import template

THUMBNAIL, QUALITY = 144, 82  # pixels a side at most; of JPEG
OPEN = 24  # pictures whose nearest images stand open; those after them open on demand
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 56, 16, 18, 44
TAGS = 30  # of the header that are listed


@dataclass(frozen=True)
class Dot:
    """A weight in the chart: where it stands, the ends of its interval, what its tooltip says."""

    x: float
    y: float
    low: float
    high: float
    title: str


def page(found: Found, folder: Path) -> str:
    """The page as HTML. `folder` is the audit's, where the pictures lie."""
    return template("audit.html").render(
        found=found,
        columns=columns(found),
        pictures=[_picture(one, folder) for one in found.pictures],
        open=OPEN,
        kinds=found.kinds,
        curve=_curve(found),
        rows=[_row(one) for one in found.rows],
        written=[one for one in found.rows if one.command],
        tags=list(found.header["tags"].items())[:TAGS],
        untold=max(0, len(found.header["tags"]) - TAGS),
        similar=similar_in_words(found),
        percent=percent,
        bounds=bounds,
        size=(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
    )


def columns(found: Found) -> list[dict[str, Any]]:
    """Yours, base, held-out, chance: what stands beside the answer."""
    table: list[tuple[str, Share | None, str]] = [
        ("yours", found.yours, "of your pictures come back"),
        (
            "base",
            found.base,
            "come back from the model yours was made from, same prompts and seeds"
            + (
                "; its images set the threshold, against pictures that they were not asked for"
                if found.copy_threshold.origin == "calibrated"
                else ""
            ),
        ),
        (
            "held-out",
            found.held_out,
            "pictures never trained on would be called copied by the same rule",
        ),
        (
            "chance",
            found.chance,
            "if captions were shuffled against pictures; by their own captions alone"
            f" {found.by_caption} come back",
        ),
    ]
    if not found.of_model:  # there are no prompts that could be shuffled or given to a base
        table = [one for one in table if one[0] in ("yours", "held-out")]
    return [
        {
            "name": name,
            "known": share is not None,
            "count": "" if share is None else _count(share.count),
            "total": 0 if share is None else share.total,
            "interval": bounds(share.interval) if share and share.interval else "",
            "means": means,
        }
        for name, share, means in table
    ]


def similar_in_words(found: Found) -> str:
    """A sentence on pictures that are not counted and still look like an image; empty for none."""
    if not found.similar:
        return ""
    one = found.similar == 1
    return (
        f" {found.similar} more picture{' is' if one else 's are'} at least"
        f" {found.copy_threshold.grey:g} similar to some image: similar, not counted."
    )


def percent(value: float) -> str:
    """A share as `12 %`, with a decimal below one in a hundred."""
    digits = 1 if 0 < value < 0.01 else 0
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def bounds(interval: tuple[float, float] | None) -> str:
    """`3 % to 12 %`."""
    return "" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def _count(count: float) -> str:
    return f"{count:.0f}" if count == round(count) else f"{count:.1f}"


def _picture(one: PictureFound, folder: Path) -> dict[str, Any]:
    return {
        "found": one,
        "image": thumbnail(folder / one.file),
        "nearest": [{"near": near, "image": thumbnail(folder / near.file)} for near in one.nearest],
        "kinds": [
            (kind, copies, images) for kind, (copies, images) in one.by_kind.items() if copies
        ],
    }


def thumbnail(path: Path) -> str:
    """A picture file as a data address of a small JPEG; of a PNG where it is small anyway. Empty
    where the file is gone.
    """
    try:
        image = read_image(path)
    except UserError:
        return ""
    buffer = io.BytesIO()
    if max(image.size) <= THUMBNAIL // 2:
        image.save(buffer, "PNG")
        kind = "png"
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=QUALITY)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _row(one: Row) -> dict[str, Any]:
    return {
        "row": one,
        "use": "" if one.use is None else f"{one.use[0]:.2f} [{one.use[1]:.2f}, {one.use[2]:.2f}]",
        "alignment": "" if one.alignment is None else f"{one.alignment:.3f}",
        "seconds": "" if one.seconds is None else f"{one.seconds:.3g}",
    }


def _curve(found: Found) -> dict[str, Any] | None:
    """Copies and use by weight, where there are at least three weights. The axis reaches from the
    least use to the largest, which may lie below that of the base and above the model's.
    """
    rows = sorted((one for one in found.rows if one.weight is not None), key=_weight)
    if len(rows) < 3:
        return None
    largest = max(_weight(one) for one in rows)
    smallest = min(0.0, min(_weight(one) for one in rows))
    uses = [one.use[0] for one in rows if one.use is not None]
    levels = ticks(min(0.0, *uses), max(1.0, *uses)) if uses else [0, 0.25, 0.5, 0.75, 1]
    bottom, top = levels[0], levels[-1]

    def x(weight: float) -> float:
        share = (weight - smallest) / (largest - smallest)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(share: float) -> float:
        part = (share - bottom) / (top - bottom)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    dots = [
        Dot(
            x(_weight(one)),
            y(one.copies),
            y(one.interval[0]),
            y(one.interval[1]),
            f"weight {_weight(one):g}: {percent(one.copies)} of images copy"
            f" ({bounds(one.interval)})",
        )
        for one in rows
    ]
    used = [(x(_weight(one)), y(one.use[0])) for one in rows if one.use is not None]
    return {
        "dots": dots,
        "used": used,
        "x_ticks": [(x(_weight(one)), f"{_weight(one):g}") for one in rows],
        "y_ticks": [(y(level), percent(level)) for level in levels],
    }


def _weight(one: Row) -> float:
    assert one.weight is not None
    return one.weight
