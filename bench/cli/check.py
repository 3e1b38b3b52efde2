"""`bench check` and `bench doctor`: try a plug-in's contracts, and look at what this machine can
run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.base.errors import UserError
from bench.cli.app import app
from bench.cli.options import RECORDS, STORE, Json, Records


@app.command(epilog="Examples:  bench check wanda   |   bench check ./mine.py -p strength=0.3")
def check(
    name: Annotated[
        str, typer.Argument(help="A method, metric or attack, or a Python file that holds one.")
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try the contracts of a method, metric or attack on a tiny model; say which is broken, how,
    and what to change.
    """
    from bench.base.parameters import parse_assignments
    from bench.registry.listing import kind_of

    values, kind = parse_assignments(parameter or []), kind_of(name)
    from bench.checks import check as checks
    from bench.registry import registry

    entry = registry.find(kind, name)
    results = checks.check(entry, values)
    print(
        json.dumps([vars(result) for result in results], indent=1)
        if as_json
        else checks.text(results, f"{kind} {entry.name}")
    )
    if any(result.verdict == "broken" for result in results):
        raise typer.Exit(1)


@app.command(
    epilog="Examples:  bench doctor   |   bench doctor --suite testbed --suite ./mine.toml"
)
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
    if not found.ok:
        raise typer.Exit(1)
