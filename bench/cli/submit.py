"""`bench submit`: check a stranger's record and put it where the tables show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app, examples
from bench.cli.options import COMMITTED, Json, SuiteOfRecord


@app.command(epilog=examples("bench submit theirs.json --store their-store"))
def submit(
    record: Annotated[Path, typer.Argument(help="A run record (JSON) that somebody sends.")],
    store: Annotated[
        str | None,
        typer.Option(
            help=(
                "The sample store of that run, where it came too: its images are compared with"
                " their digests."
            )
        ),
    ] = None,
    suite: SuiteOfRecord = None,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = Path("leaderboards/self-reported"),
    as_json: Json = False,
) -> None:
    """Check a stranger's record, and put it where the tables show it as self-reported.

    Checks all that can be checked without running it again; the exit code is 1 when a check fails,
    and nothing is written then.
    """
    from bench.submission.submit import submit as check_and_file
    from bench.submission.submit import text
    from bench.suite.load import load_suite

    found = check_and_file(record, out, store, COMMITTED, load_suite(suite) if suite else None)
    path = str(found.path) if found.path else None
    print(
        json.dumps(
            {"path": path, "findings": [vars(finding) for finding in found.findings]}, indent=1
        )
        if as_json
        else text(found)
    )
    if found.path is None:
        raise typer.Exit(1)
