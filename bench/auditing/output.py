"""What an audit leaves: the page, JSON and CSV in its folder, and a few lines on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.auditing.page import bounds, columns, page, percent, similar_in_words
from bench.auditing.result import Found
from bench.auditing.work import RESULT, forget_images, shown_images
from bench.base.csv_cells import csv_cell
from bench.base.errors import visible
from bench.base.files import write_atomically
from bench.base.text import duration_text, size_text

if TYPE_CHECKING:
    import pandas as pd

LISTED = 10  # pictures that the terminal names


def write(found: Found, out: Path) -> dict[str, Path]:
    """Write `index.html`, `audit.json`, `audit.md`, `pictures.csv` and `rows.csv` into the audit's
    folder.
    """
    frames = found.frames()
    contents = {
        "page": ("index.html", page(found, out)),
        "json": (RESULT, json.dumps(found.as_json(), indent=1) + "\n"),
        "card": ("audit.md", markdown(found)),
        "pictures": ("pictures.csv", frame_as_csv(frames["pictures"])),
        "rows": ("rows.csv", frame_as_csv(frames["rows"])),
    }
    shown = shown_images(out)  # before its file is written over
    files = {}
    for key, (name, content) in contents.items():
        files[key] = out / name
        write_atomically(files[key], content.encode())
    forget_images(out, shown, {near.file for one in found.pictures for near in one.nearest})
    return files


def frame_as_csv(frame: pd.DataFrame) -> str:
    """A frame as pandas writes it, without its index and without formulas."""
    safe = frame.copy()
    for name in safe.columns:
        if safe[name].map(lambda value: isinstance(value, str)).any():
            safe[name] = safe[name].map(csv_cell)
    return safe.to_csv(index=False)


def markdown(found: Found) -> str:
    """The audit in short, for the card of a model: the answer with what stands beside it, kinds of
    prompts, weights and remedies. It names no picture.
    """
    looked = f"{found.yours.total} of {found.total}" if found.total > found.yours.total else "all"
    how = f", {found.images_each} images of each caption" if found.of_model else ""
    quick = "; a quick audit" if found.settings.get("quick") else ""
    limits = (
        f"Looked for {looked} training pictures in {found.images:,} images{how}{quick}. A copy is"
        f" at least {found.threshold:g} similar (descriptor of suite {found.settings['like']},"
        f" profile {found.profile}). {found.copy_threshold.words}{similar_in_words(found)}"
    )
    lines = [f"**{found.answer}** {limits}", "", "| | pictures | 95 % | |", "|---|---|---|---|"]
    for one in columns(found):
        known = f"{one['count']} of {one['total']}" if one["known"] else "not known"
        lines.append(f"| {one['name']} | {known} | {one['interval']} | {one['means']} |")
    if found.kinds:
        lines += ["", "| prompts | images | copies | 95 % | base |", "|---|---|---|---|---|"]
        for kind in found.kinds:
            base = "" if kind.base is None else kind.base
            lines.append(
                f"| {kind.kind} | {kind.images} | {kind.copies} | {bounds(kind.interval)} |"
                f" {base} |"
            )
    if len(found.rows) > 1:
        lines += ["", "| setting | images that copy | 95 % | use | text score | travels | |"]
        lines.append("|---|---|---|---|---|---|---|")
        for row in found.rows:
            used = "" if row.use is None else f"{row.use[0]:.2f}"
            aligned = "" if row.alignment is None else f"{row.alignment:.3f}"
            lines.append(
                f"| {_cell(row.name)} | {percent(row.copies)} | {bounds(row.interval)} | {used} |"
                f" {aligned} | {row.travels} | {row.against or row.not_against} |"
            )
    if found.attack:
        lines += ["", found.attack.words]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return visible(text).replace("|", "\\|").replace("<", "&lt;")


def text(found: Found, files: Mapping[str, Path]) -> str:
    """The answer for a terminal."""
    lines = [found.answer]
    lines.append(f"a copy is at least {found.threshold:g} similar. {found.copy_threshold.words}")
    if found.similar:
        lines.append(similar_in_words(found).strip())
    for one in columns(found):
        known = f"{one['count']} of {one['total']}" if one["known"] else "not known"
        interval = f" ({one['interval']})" if one["interval"] else ""
        lines.append(f"  {one['name']:<9} {known}{interval}: {one['means']}")
    back = [one for one in found.pictures if one.verdict != "not seen"]
    for picture in back[:LISTED]:
        rate = f"{picture.copies} of {picture.images}" if picture.images else "-"
        interval = f" ({bounds(picture.interval)})" if picture.interval else ""
        made = "images of its caption" if found.of_model else "generations"
        lines.append(f"  {visible(picture.name)}: {picture.verdict}, {rate} {made}{interval}")
    if len(back) > LISTED:
        lines.append(f"  and {len(back) - LISTED} more")
    weights = [one for one in found.rows if one.weight is not None]
    if len(weights) > 1:
        shown = ", ".join(f"{one.weight:g}: {percent(one.copies)}" for one in weights)
        lines.append(f"copies by weight: {shown}")
    lines += [f"note: {visible(note)}" for note in found.notes]
    lines.append(f"page: {files['page']}")
    return "\n".join(lines)


def plan_in_words(planned: Mapping[str, Any]) -> str:
    """The plan for people."""
    counted = ", ".join(f"{count:,} {name}" for name, count in planned["images"].items())
    seconds = planned["seconds_estimated"]
    about = "" if seconds is None else f", about {duration_text(seconds)} at the pace of just now"
    return (
        f"{planned['pictures']} training pictures, {planned['held_out']} held out,"
        f" {planned['prompts']} prompts; images: {counted}\n"
        f"{planned['images_missing']:,} images to make ({planned['row_evaluations']:,} row"
        f" evaluations, {size_text(planned['disk_mib'] * 2**20)}{about}) in {planned['out']}"
        + "".join(f"\nnote: {visible(note)}" for note in planned["notes"])
    )
