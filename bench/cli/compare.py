"""`bench compare`: set two run records beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app, examples
from bench.cli.options import Json


@app.command(
    epilog=examples(
        "bench compare runs/records/testbed/none/0123456789ab.json"
        " runs/records/testbed/wanda/ba9876543210.json"
    )
)
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run record (JSON).")],
    b: Annotated[
        Path,
        typer.Argument(metavar="B", help="The record to set beside it; differences are B - A."),
    ],
    as_json: Json = False,
) -> None:
    """Say whether two run records may be compared, and what differs.

    Differences are those of the protocol, the environment and the numbers.
    """
    from bench.leaderboard.comparing import compare_files, shown

    found = compare_files(a, b)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    from rich.console import Console

    for part in shown(found):
        print(part) if isinstance(part, str) else Console().print(part)
