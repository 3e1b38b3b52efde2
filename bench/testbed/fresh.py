"""Fresh captioned scenes for fine-tuning the embedded model and for experiments that train.

Pictures and captions of other seeds than its own, so that it never saw them.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from bench.base.errors import UserError
from bench.base.files import write_atomically
from bench.base.pictures import encode_png
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
    """Pictures, and the captions of them all in `metadata.csv`."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "text"])
    for name, scene in zip(names, scenes, strict=True):
        write_atomically(folder / name, encode_png(render(scene, side)))
        rows.writerow([name, scene.caption])
    write_atomically(folder / "metadata.csv", table.getvalue().encode())
    return [*(folder / name for name in names), folder / "metadata.csv"]
