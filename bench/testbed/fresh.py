"""Fresh captioned scenes for fine-tuning the embedded model.

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
from bench.testbed.plan import CPU_PLAN
from bench.testbed.scenes import canary_scenes, render


def write_scenes(folder: Path, count: int, seed: int, side: int = CPU_PLAN.side) -> list[Path]:
    """Write `count` scenes with captions of their own and `metadata.csv`; the files written.

    The captions have invented words, as canaries have them. Raises `UserError` for the seed that
    the embedded model was trained with.
    """
    if seed == CPU_PLAN.seed:
        raise UserError(
            f"seed {seed} gives the scenes that the embedded model was trained on; choose another"
        )
    plan = replace(CPU_PLAN, seed=seed, levels=((1, count),), template_levels=(), pristine=0)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "text"])
    files = []
    for number, canary in enumerate(canary_scenes(plan)):
        files.append(folder / f"scene-{number:04d}.png")
        write_atomically(files[-1], encode_png(render(canary.scenes[0], side)))
        rows.writerow([files[-1].name, canary.caption])
    write_atomically(folder / "metadata.csv", table.getvalue().encode())
    return [*files, folder / "metadata.csv"]
