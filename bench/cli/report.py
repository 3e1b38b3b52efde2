"""`bench report`: everything that one run record says, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app, examples


@app.command(
    epilog=examples("bench report runs/records/testbed/wanda/ba9876543210.json --out wanda.html")
)
def report(
    record: Annotated[Path, typer.Argument(help="A run record (JSON).")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where the page goes; <record's name>.html in this folder by default."),
    ] = None,
) -> None:
    """Write everything that one run record says as a page.

    The page is one HTML file that needs nothing else.
    """
    from bench.leaderboard.report import write_report

    print(write_report(record, out))
