"""Fresh captioned scenes for fine-tuning the embedded model and for experiments that train.

Pictures and captions of other seeds than its own, so that it never saw them.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.base import limits
from bench.base.errors import UserError
from bench.base.files import is_there, read_regular_file, write_atomically
from bench.base.pictures import encode_png, read_picture
from bench.base.spread import evenly
from bench.testbed.plan import CPU_PLAN
from bench.testbed.scenes import (
    Scene,
    canary_scenes,
    random_background,
    random_placements,
    render,
    stream_generator,
)
from bench.testbed.sprites import CODEPOINTS, concept_names


def write_scenes(folder: Path, count: int, seed: int, side: int = CPU_PLAN.side) -> list[Path]:
    """Write `count` scenes with captions of their own and `metadata.csv`; the files written.

    The captions have invented words, as canaries have them. Raises `UserError` for the seed that
    the embedded model was trained with.
    """
    names = [f"scene-{number:04d}.png" for number in range(count)]
    return _written(folder, names, fresh_scenes(count, seed), side)


def fresh_scenes(count: int, seed: int) -> list[Scene]:
    """So many scenes whose captions have invented words of their own, all drawn alike.

    Raises `UserError` for the seed that the embedded model was trained with.
    """
    _refuse_known(seed)
    plan = replace(CPU_PLAN, seed=seed, levels=((1, count),), template_levels=(), pristine=0)
    return [canary.scenes[0] for canary in canary_scenes(plan)]


def write_objects(
    folder: Path, classes: int, each: int, seed: int, side: int = CPU_PLAN.side
) -> list[Path]:
    """Write `each` pictures of each of `classes` objects, one object a picture on a background of
    its own and named by its caption, with `metadata.csv`; the files written.

    Raises `UserError` for more classes than there are objects, and for the seed that the embedded
    model was trained with.
    """
    _refuse_known(seed)
    if not 1 <= classes <= len(CODEPOINTS):
        raise UserError(f"there are {len(CODEPOINTS)} objects to draw, not {classes}")
    names, scenes = list[str](), list[Scene]()
    for concept in evenly(len(CODEPOINTS), classes):
        for number in range(each):
            # Of no other number than its own, so that more pictures are the same and some.
            random = stream_generator(seed, "train", number * len(CODEPOINTS) + concept)
            background = random_background(random)
            placements = random_placements(random, (concept,))
            names.append(f"object-{concept:02d}-{number:04d}.png")
            scenes.append(Scene(concept_names()[concept], background, placements))
    return _written(folder, names, scenes, side)


def _refuse_known(seed: int) -> None:
    if seed == CPU_PLAN.seed:
        raise UserError(
            f"seed {seed} gives the scenes that the embedded model was trained on; choose another"
        )


def _written(folder: Path, names: list[str], scenes: list[Scene], side: int) -> list[Path]:
    """Pictures, and the captions of them all in `metadata.csv`.

    Raises `UserError` where other pictures or captions of these names lie there already.
    """
    table, listed = io.StringIO(), folder / "metadata.csv"
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "text"])
    rows.writerows([name, scene.caption] for name, scene in zip(names, scenes, strict=True))
    content = table.getvalue()
    other = UserError(f"{folder} holds other pictures than these: give another folder with --out")
    if is_there(listed) and not _more_or_less(listed, content):
        raise other
    for name, scene in zip(names, scenes, strict=True):
        write_picture(folder / name, render(scene, side), other)
    write_atomically(listed, content.encode())
    return [*(folder / name for name in names), listed]


def _more_or_less(listed: Path, content: str) -> bool:
    """Whether a list that is there has rows of this one, or all of them and more."""
    try:
        there = set(read_regular_file(listed, limits.LIST_BYTES).decode().splitlines())
    except (OSError, ValueError):
        return False
    made = set(content.splitlines())
    return there <= made or made <= there


def write_picture(file: Path, picture: np.ndarray, other: UserError) -> None:
    """Write a picture, uint8 `[H, W, 3]`; raises `other` where another one has its name."""
    if is_there(file) and not np.array_equal(read_picture(file), picture):
        raise other
    write_atomically(file, encode_png(picture))
