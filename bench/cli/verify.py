"""`bench verify`: make a random part of a run again and compare it with the record."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app, examples
from bench.cli.options import Device, Json, SuiteOfRecord, Trust


@app.command(
    epilog=examples(
        "bench verify leaderboards/records/testbed-quick/none/0123456789ab.json --prompts 4"
    )
)
def verify(
    record: Annotated[Path, typer.Argument(help="A run record (JSON).")],
    prompts: Annotated[int, typer.Option(help="How many prompts of every role to make again.")] = 8,
    seed: Annotated[
        int | None,
        typer.Option(help="Draws which prompts; by default one that nobody can know in advance."),
    ] = None,
    suite: SuiteOfRecord = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="The method's Python file, where it is none from `bench list methods`."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Keep images here, to go on after an interruption; a temporary folder by default."
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
    trust: Trust = None,
) -> None:
    """Make a random part of a run again and compare it with its record.

    Images are compared bit by bit, and numbers prompt by prompt; the exit code is 1 when they
    differ by more than machines do.
    """
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.records.record import load_record
    from bench.submission.submit import known_suite
    from bench.submission.verification import text
    from bench.submission.verify import verify as make_again
    from bench.suite.load import load_suite

    known = load_record(record)
    suite_of_record = (
        load_suite(suite, known.limit) if suite else known_suite(known.suite, known.limit)
    )
    drawn_by = secrets.randbits(32) if seed is None else seed
    with reporter() as report, tempfile.TemporaryDirectory() as folder:
        found = make_again(
            known,
            suite_of_record,
            prompts,
            drawn_by,
            store or Path(folder),
            pick_device(device),
            report,
            method,
        )
    print(json.dumps(found.as_json(), indent=1) if as_json else text(found))
    print(f"compared with {record}", file=sys.stderr)
    if found.verdict == "differs":
        raise typer.Exit(1)
