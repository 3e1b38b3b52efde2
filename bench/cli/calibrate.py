"""`bench calibrate`: measure what an attack or a metric must know before it can run, such as a
threshold, or which prompts the model copies.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.app import app, examples
from bench.cli.options import STORE, Device, Json, StorePlace, SuiteName, Trust, resumable

LONGEST_SHOWN = 160  # characters of a value that is printed whole


@app.command(
    epilog=examples(
        "bench calibrate clique_extraction --suite testbed",
        "bench calibrate copies --suite testbed --out labels.json",
    )
)
def calibrate(
    attack: Annotated[
        str, typer.Argument(help="An attack or metric that needs a calibration, or a Python file.")
    ],
    suite: SuiteName = "testbed",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="name=value, over the suite's. May be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=("Where the result goes; by default beside the suite file, as the suite names it.")
        ),
    ] = None,
    store: StorePlace = STORE,
    device: Device = None,
    as_json: Json = False,
    trust: Trust = None,
) -> None:
    """Measure on the model without mitigation what an attack or a metric needs before it can run.

    The result, such as a threshold or the labels of copied prompts, is written to a file beside the
    suite.
    """
    from bench.suite.load import load_suite

    loaded_suite = load_suite(suite)
    from bench.base.parameters import parse_assignments
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.studies.calibration import calibrate as measure

    with reporter() as report, resumable():
        path, content = measure(
            loaded_suite,
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
    if len(text) < LONGEST_SHOWN:
        return text
    return f"{text[: LONGEST_SHOWN - 10]} ... ({len(value)} values)"
