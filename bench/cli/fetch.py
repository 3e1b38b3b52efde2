"""`bench fetch`: bring what suites need and this project does not ship."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from bench.cli.app import app, examples
from bench.cli.options import Json, grouped, resumable


@dataclass(frozen=True)
class AssetOptions:
    """What is brought."""

    panel: ClassVar[str] = "What is brought"

    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", help="A name from `bench list suites`, or a TOML file. May be repeated."
        ),
    ] = None
    only: Annotated[list[str] | None, typer.Option(help="Only this asset. May be repeated.")] = None
    skip: Annotated[list[str] | None, typer.Option(help="Not this asset. May be repeated.")] = None


@dataclass(frozen=True)
class SourceOptions:
    """Where assets come from, and where they are kept."""

    panel: ClassVar[str] = "From where, and where it is kept"

    local: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH: take this asset from a file or a diffusers folder that you have."
        ),
    ] = None
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or folder to ask first, laid out as the cache is. May be repeated."
        ),
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(help="Where assets are kept; also the environment variable BENCH_CACHE."),
    ] = None
    offline: Annotated[bool, typer.Option("--offline", help="Ask nothing but local paths.")] = False
    login: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ASSET",
            help=(
                "Send your login of the hub along for this asset, which a suite states itself."
                " Files that this project names need no such word. May be repeated."
            ),
        ),
    ] = None


@dataclass(frozen=True)
class DownloadOptions:
    """How downloads are made and repeated."""

    panel: ClassVar[str] = "How downloads are made"

    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Hash again what is here already; what is damaged is fetched again."
        ),
    ] = False
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="Ask again for pictures whose links were dead.")
    ] = False
    workers: Annotated[int, typer.Option(min=1, help="Downloads at once.")] = 8
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds to wait for an answer, and for every further KiB."),
    ] = 30.0
    retries: Annotated[
        int, typer.Option(min=0, help="Further tries of a source that fails for now.")
    ] = 2


@app.command(
    epilog=examples(
        "bench fetch --suite sd14-mem500 --dry-run",
        "bench fetch --suite sd14-mem500 --local sd14=./stable-diffusion-v1-4",
    )
)
@grouped
def fetch(
    assets: AssetOptions,
    source: SourceOptions,
    download: DownloadOptions,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would be fetched, how large it is and under which licence, and stop.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring what suites need, each file by its sha256.

    These are models, scorers, prompt lists and training pictures. Interrupted, the same command
    goes on.
    """
    from bench.assets.asset import cache_folder
    from bench.base.progress import reporter
    from bench.suite.fetch import (
        fetch_entries,
        parse_local,
        parse_logins,
        plan_text,
        text,
        wanted_entries,
    )
    from bench.suite.load import load_suite

    suites = [load_suite(name) for name in assets.suite or ()]
    entries = wanted_entries(suites, assets.only or (), assets.skip or ())
    folder = cache_folder(source.cache)
    logins = parse_logins(source.login or (), entries)
    if dry_run:
        print(
            json.dumps({name: entry.model_dump() for name, entry in entries.items()}, indent=1)
            if as_json
            else plan_text(entries, folder)
        )
        return
    local = parse_local(source.local or (), entries)
    with reporter() as report, resumable():
        brought = fetch_entries(
            entries,
            folder,
            local,
            source.mirror or (),
            source.offline,
            download.workers,
            download.timeout,
            download.retries,
            download.retry_dead,
            download.check,
            report,
            logins,
        )
    print(json.dumps(brought.as_json(), indent=1) if as_json else text(brought, folder))
    if not brought.ok:
        raise typer.Exit(1)
