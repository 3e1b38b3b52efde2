"""`bench sweep`: a method's strength curve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.base import limits
from bench.base.errors import UserError
from bench.cli.app import app, examples
from bench.cli.options import (
    COMMITTED,
    STORE,
    Device,
    Json,
    StorePlace,
    SuiteName,
    Trust,
    resumable,
)


@app.command(
    epilog=examples(
        "bench sweep wanda --suite testbed-quick",
        "bench sweep guidance --values 0.9,0.7,0.5,0.3 --seeds 3",
    )
)
def sweep(
    method: Annotated[
        str, typer.Argument(help="A name from `bench list methods`, or a Python file.")
    ],
    suite: SuiteName = "testbed",
    values: Annotated[
        str,
        typer.Option(
            help=(
                "Strengths, separated by commas, in any order; those that the method names itself"
                " by default."
            )
        ),
    ] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", help="name=value, the same at every strength. May be repeated."
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            max=limits.GENERATIONS,
            help="Generations of every prompt, each from other seeds, as of a board's rows.",
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Where the curve goes; leaderboards/sweeps/<suite>/<method>.json by default, of"
                " several seeds <method>-<seeds>-seeds.json."
            )
        ),
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Where records of the points are kept, to go on from them.")
    ] = Path("runs/sweeps"),
    store: StorePlace = STORE,
    device: Device = None,
    as_json: Json = False,
    trust: Trust = None,
) -> None:
    """Run a method at several strengths on the held-out prompts, without attacks.

    `bench leaderboard` draws the curve, and says how much replication is left where clean alignment
    has fallen by a given amount. Interrupted, the same command goes on where it stopped.
    """
    from bench.base.parameters import parse_assignments
    from bench.base.progress import reporter
    from bench.diffusion.execution import float32_products
    from bench.diffusion.model import pick_device
    from bench.studies import sweep as study
    from bench.suite.load import load_suite

    try:
        strengths = [float(value) for value in values.split(",") if value.strip()]
    except ValueError:
        raise UserError(f"--values are numbers separated by commas, not '{values}'") from None
    if values and not strengths:
        raise UserError(f"--values '{values}' names no strength: give numbers separated by commas")
    loaded = load_suite(suite)
    given = parse_assignments(parameter or [])
    with reporter() as report, resumable(), float32_products(False):
        result = study.sweep(
            loaded, method, strengths, given, work, store, pick_device(device), report, seeds
        )
    path = out or COMMITTED.parent / "sweeps" / loaded.name / result.file_name
    result.save(path)
    print(result.model_dump_json(indent=1) if as_json else study.text(result))
    print(f"curve: {path}", file=sys.stderr if as_json else sys.stdout)
