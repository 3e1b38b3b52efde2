"""The commands that take run records: compare two, show one, take a stranger's, make a part of one
again.
"""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app
from bench.cli.options import COMMITTED, Json


@app.command(
    epilog=(
        "Example:  bench compare runs/records/testbed/none/0123456789ab.json"
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
    """Say whether two run records may be compared, and what differs: protocol, environment,
    numbers.
    """
    from bench.leaderboard.comparing import compare_files, shown

    found = compare_files(a, b)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    from rich.console import Console

    for part in shown(found):
        print(part) if isinstance(part, str) else Console().print(part)


@app.command(
    epilog="Example:  bench report runs/records/testbed/wanda/ba9876543210.json --out wanda.html"
)
def report(
    record: Annotated[Path, typer.Argument(help="A run record (JSON).")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where the page goes; <record's name>.html in this folder by default."),
    ] = None,
) -> None:
    """Write everything that one run record says as a page: one HTML file that needs nothing
    else.
    """
    from bench.leaderboard.report import write_report

    print(write_report(record, out))


@app.command(epilog="Example:  bench submit theirs.json --store their-store")
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
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="The suite's TOML file, where it is none from `bench list suites`."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = Path("leaderboards/self-reported"),
    as_json: Json = False,
) -> None:
    """Check all that can be checked of a stranger's record, and put it where the tables show it as
    self-reported.
    """
    from bench.submission.submit import submit as take
    from bench.submission.submit import text
    from bench.suite.load import load_suite

    found = take(record, out, store, COMMITTED, load_suite(suite) if suite else None)
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


@app.command(
    epilog=(
        "Example:  bench verify leaderboards/records/testbed-quick/none/0123456789ab.json"
        " --prompts 4"
    )
)
def verify(
    record: Annotated[Path, typer.Argument(help="A run record (JSON).")],
    prompts: Annotated[int, typer.Option(help="How many prompts of every role to make again.")] = 8,
    seed: Annotated[
        int | None,
        typer.Option(help="Draws which prompts; by default one that nobody can know in advance."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="The suite's TOML file, where it is none from `bench list suites`."
        ),
    ] = None,
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
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU by default where there is one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a random part of a run again and compare it: images bit by bit, and numbers prompt by
    prompt.
    """
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.records.record import load_record
    from bench.submission.submit import known_suite
    from bench.submission.verdict import text
    from bench.submission.verify import verify as make_again
    from bench.suite.load import load_suite

    known = load_record(record)
    asked = load_suite(suite, known.limit) if suite else known_suite(known.suite, known.limit)
    drawn_by = secrets.randbits(32) if seed is None else seed
    with reporter() as report, tempfile.TemporaryDirectory() as folder:
        found = make_again(
            known,
            asked,
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
