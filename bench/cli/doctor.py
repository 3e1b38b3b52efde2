"""`bench doctor`: say what this machine can run, and how to get what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.base.errors import UserError
from bench.cli.app import app, examples
from bench.cli.options import RECORDS, STORE, Json, Records


@app.command(epilog=examples("bench doctor", "bench doctor --suite testbed --suite ./mine.toml"))
def doctor(
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", help="A name from `bench list suites`, or a TOML file; by default all names."
        ),
    ] = None,
    records: Records = RECORDS,
    store: Annotated[
        str,
        typer.Option(
            help="Folder where images and features are kept; it cannot look at one behind a URL."
        ),
    ] = STORE,
    as_json: Json = False,
) -> None:
    """Say in one screen what this machine can run, what is missing, and how to get it."""
    from bench.doctor.examine import examine
    from bench.doctor.text import text

    if "://" in store:
        raise UserError(
            f"bench doctor looks at this machine, and {store} is elsewhere: leave --store out"
        )
    found = examine(suite, Path(store), records)
    print(json.dumps(found.as_json(), indent=1) if as_json else text(found))
