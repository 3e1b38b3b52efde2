"""`bench leaderboard`: regenerate every table and page from the records, or check them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app, examples
from bench.cli.options import COMMITTED, Json, Records


@app.command(
    epilog=examples(
        "bench leaderboard",
        "bench leaderboard --check",
        "bench leaderboard --records runs/records --out runs/leaderboard",
    )
)
def leaderboard(
    records: Records = COMMITTED,
    out: Annotated[Path, typer.Option(help="Where the tables and pages go.")] = Path(
        "leaderboards"
    ),
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Write nothing; fail when what is there differs from what the records give.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make every table and page again from the records.

    The exit code is 1 when a record is damaged, or with --check when a page differs.
    """
    from bench.leaderboard.leaderboard import check_pages, make_pages, write_pages

    readme = out.parent / "README.md"
    pages, problems = make_pages(
        records, readme if out.name == COMMITTED.parent.name and readme.exists() else None
    )
    if check:
        differences = [*problems, *check_pages(pages, out)]
        print(
            json.dumps({"pages": len(pages), "differences": differences})
            if as_json
            else "\n".join(differences) or f"{len(pages)} files agree with their records"
        )
        if differences:
            raise typer.Exit(1)
        return
    written = write_pages(pages, out)
    print(
        json.dumps([str(path) for path in written])
        if as_json
        else "\n".join(str(path) for path in written)
    )
    for problem in problems:
        print(f"bench: left out: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)
