"""`bench tune`: choose a method's parameters."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from bench.cli.app import app, examples
from bench.cli.options import COMMITTED, Device, Json, SuiteName, Trust, grouped, resumable


@dataclass(frozen=True)
class ChoiceOptions:
    """The rule by which a setting is chosen, and how much is measured for it."""

    panel: ClassVar[str] = "How a setting is chosen"

    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="How far the CLIP score of clean prompts may fall below that of `none`."
        ),
    ] = 0.02
    tolerance_fit: Annotated[
        float,
        typer.Option(
            min=0, help="The same on fit prompts, whose copies show all that was asked for."
        ),
    ] = 0.15
    clean: Annotated[
        int, typer.Option(min=1, help="Clean prompts that alignment is measured on.")
    ] = 48
    images: Annotated[int, typer.Option(min=1, help="Images a fit prompt.")] = 4


@app.command(epilog=examples("bench tune wen --grid quantile=0.05,0.5,0.95 --suite testbed"))
@grouped
def tune(
    method: Annotated[
        str, typer.Argument(help="A name from `bench list methods`, or a Python file.")
    ],
    grid: Annotated[
        list[str],
        typer.Option(
            "--grid", help="name=value,value,... May be repeated: every combination is tried."
        ),
    ],
    choice: ChoiceOptions,
    suite: SuiteName = "testbed",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the result goes; leaderboards/tuning/<suite>/<method>.json by default."
        ),
    ] = None,
    work: Annotated[
        Path,
        typer.Option(
            help=(
                "Where images and records of the settings are kept, to go on after an interruption."
            )
        ),
    ] = Path("runs/tuning"),
    device: Device = None,
    as_json: Json = False,
    trust: Trust = None,
) -> None:
    """Choose parameters on fit prompts only: the lowest SSCD that keeps alignment.

    Held-out prompts are never sampled.
    """
    from bench.suite.load import load_suite

    loaded_suite = load_suite(suite)
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.registry import registry
    from bench.studies import tuning

    settings = tuning.parse_grid(grid)
    tolerance = {tuning.ALIGNMENT: choice.tolerance_fit, tuning.CLEAN_ALIGNMENT: choice.tolerance}
    entry = registry.find("method", method)
    with reporter() as report, resumable():
        result = tuning.tune(
            loaded_suite,
            method,
            settings,
            work,
            pick_device(device),
            tolerance,
            choice.clean,
            choice.images,
            report,
        )
    path = out or COMMITTED.parent / "tuning" / loaded_suite.name / f"{entry.name}.json"
    result.save(path)
    print(result.model_dump_json(indent=1) if as_json else tuning.text(result))
    print(f"tuning: {path}", file=sys.stderr if as_json else sys.stdout)
