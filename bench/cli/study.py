"""`bench tune` and `bench calibrate`: choose a method's parameters, or an attack's threshold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.options import COMMITTED, STORE, Json, resumable


@app.command(epilog="Example:  bench tune wen --grid quantile=0.05,0.5,0.95 --suite testbed")
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
    suite: Annotated[
        str, typer.Option("--suite", help="A name from `bench list suites`, or a TOML file.")
    ] = "testbed",
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
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="How far the CLIP score of clean prompts may fall below that of `none`."
        ),
    ] = 0.02,
    tolerance_fit: Annotated[
        float,
        typer.Option(
            min=0, help="The same on fit prompts, whose copies show all that was asked for."
        ),
    ] = 0.15,
    clean: Annotated[
        int, typer.Option(min=1, help="Clean prompts that alignment is measured on.")
    ] = 48,
    images: Annotated[int, typer.Option(min=1, help="Images a fit prompt.")] = 4,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU by default where there is one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose parameters on fit prompts only: the lowest SSCD that keeps alignment.

    Held-out prompts are never sampled.
    """
    from bench.suite.load import load_suite

    chosen = load_suite(suite)
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.registry import registry
    from bench.studies import tuning

    settings, allowed = (
        tuning.parse_grid(grid),
        {tuning.ALIGNMENT: tolerance_fit, tuning.CLEAN_ALIGNMENT: tolerance},
    )
    entry = registry.find("method", method)
    with reporter() as report, resumable():
        result = tuning.tune(
            chosen, method, settings, work, pick_device(device), allowed, clean, images, report
        )
    path = out or COMMITTED.parent / "tuning" / chosen.name / f"{entry.name}.json"
    result.save(path)
    print(result.model_dump_json(indent=1) if as_json else tuning.text(result))
    print(f"tuning: {path}", file=sys.stderr if as_json else sys.stdout)


@app.command(epilog="Example:  bench calibrate clique_extraction --suite testbed")
def calibrate(
    attack: Annotated[
        str, typer.Argument(help="An attack that needs a calibration, or a Python file.")
    ],
    suite: Annotated[
        str, typer.Option("--suite", help="A name from `bench list suites`, or a TOML file.")
    ] = "testbed",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="name=value, over the suite's. May be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Where the result goes; by default beside the suite file, as its `calibration`"
                " names it."
            )
        ),
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            help=(
                "Where images and features are kept: a folder, or a URL such as s3://bucket/folder."
            )
        ),
    ] = STORE,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU by default where there is one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure on the model without mitigation what an attack needs before it can run, such as its
    threshold, and write it to a file.
    """
    from bench.suite.load import load_suite

    chosen = load_suite(suite)
    from bench.base.parameters import parse_assignments
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.studies.calibration import calibrate as measure

    with reporter() as report, resumable():
        path, content = measure(
            chosen,
            attack,
            parse_assignments(parameter or []),
            store,
            pick_device(device),
            out,
            report,
        )
    print(
        json.dumps(content, indent=1)
        if as_json
        else "\n".join(f"{key}: {_short(value)}" for key, value in content.items())
    )
    print(f"calibration: {path}", file=sys.stderr if as_json else sys.stdout)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 160 else f"{text[:150]} ... ({len(value)} values)"
