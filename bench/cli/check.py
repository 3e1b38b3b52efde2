"""`bench check`: try the contracts of a method, metric, attack or detector on a tiny model."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bench.cli.app import app, examples
from bench.cli.options import Json


@app.command(epilog=examples("bench check wanda", "bench check ./mine.py -p strength=0.3"))
def check(
    name: Annotated[
        str, typer.Argument(help="A method, metric, attack or detector, or a Python file with one.")
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try the contracts of a method, metric, attack or detector on a tiny model.

    Says which contract is broken, how, and what to change; the exit code is then 1.
    """
    from bench.base.parameters import parse_assignments
    from bench.registry import registry
    from bench.registry.listing import kind_of

    values, kind = parse_assignments(parameter or []), kind_of(name)
    from bench.checks.check import check as try_contracts
    from bench.checks.check import text

    entry = registry.find(kind, name)
    results = try_contracts(entry, values)
    print(
        json.dumps([vars(result) for result in results], indent=1)
        if as_json
        else text(results, f"{kind} {entry.name}")
    )
    if any(result.verdict == "broken" for result in results):
        raise typer.Exit(1)
