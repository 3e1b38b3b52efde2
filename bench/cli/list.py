"""`bench list`: every name that a command takes, with one line about each."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bench.cli.app import app, examples
from bench.cli.options import Json

NARROWEST = 16  # characters of the column of names, at least


@app.command("list", epilog=examples("bench list", "bench list methods"))
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="methods, metrics, attacks, detectors or suites; all by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be named: methods, metrics, attacks, detectors and suites.

    Those of installed plug-ins stand among them, and which of these are broken.
    """
    from bench.registry.listing import list_names

    found = list_names(kind)
    print(json.dumps(found, indent=1) if as_json else listing_text(found))


def listing_text(found: dict[str, dict[str, str]]) -> str:
    """Names and their lines as a table for each kind; `found` is by kind (`methods`, ...) and
    name.
    """
    width = max((len(name) for names in found.values() for name in names), default=0)
    lines = []
    for plural, names in found.items():
        lines += [
            f"{plural}:",
            *(f"  {name:<{max(width, NARROWEST)}} {summary}" for name, summary in names.items()),
        ]
        lines += [] if names else ["  (none yet)"]
    return "\n".join(lines)
