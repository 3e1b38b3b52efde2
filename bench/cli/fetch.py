"""The command that brings what suites need and this project does not ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app
from bench.cli.options import Json


@app.command(
    epilog=(
        "Examples:  bench fetch --suite sd14-mem500 --dry-run   |   bench fetch --suite sd14-mem500"
        " --local sd14=./stable-diffusion-v1-4"
    )
)
def fetch(
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", help="A name from `bench list suites`, or a TOML file. May be repeated."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this asset. May be repeated.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not this asset. May be repeated.")] = None,
    local: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH: take this asset from a file or a diffusers folder that you have."
        ),
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or folder to ask first, laid out as the cache is. May be repeated."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where assets are kept; also the environment variable BENCH_CACHE."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask nothing but local paths.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would be fetched, how large it is and under which licence, and stop.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Hash again what is here already; what is damaged is fetched again."
        ),
    ] = False,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="Ask again for pictures whose links were dead.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Downloads at once.")] = 8,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds to wait for an answer, and for every further KiB."),
    ] = 30.0,
    retries: Annotated[
        int, typer.Option(min=0, help="Further tries of a source that fails for now.")
    ] = 2,
    as_json: Json = False,
) -> None:
    """Bring what suites need: models, scorers, prompt lists, training pictures; each by its sha256.

    Interrupted, the same command goes on.
    """
    from bench.assets.asset import cache_folder
    from bench.base.progress import reporter
    from bench.cli.options import resumable
    from bench.suite.fetch import fetch_entries, parse_local, plan_text, text, wanted_entries
    from bench.suite.load import load_suite

    entries = wanted_entries([load_suite(name) for name in suite or ()], only or (), skip or ())
    folder = cache_folder(cache)
    if dry_run:
        print(
            json.dumps({name: entry.model_dump() for name, entry in entries.items()}, indent=1)
            if as_json
            else plan_text(entries, folder)
        )
        return
    places = parse_local(local or (), entries)
    with reporter() as report, resumable():
        brought = fetch_entries(
            entries,
            folder,
            places,
            mirror or (),
            offline,
            workers,
            timeout,
            retries,
            retry_dead,
            check,
            report,
        )
    print(json.dumps(brought.as_json(), indent=1) if as_json else text(brought, folder))
    if not brought.ok:
        raise typer.Exit(1)
