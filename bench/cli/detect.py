"""`bench detect`: how well a detector tells memorized prompts from others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import app, examples
from bench.cli.options import STORE, Device, Json, StorePlace, SuiteName, Trust, resumable

RESULTS = Path("runs/detections")


@app.command(
    epilog=examples(
        "bench detect --detector wen_score --suite testbed",
        "bench detect --detector wen_score -p steps=5",
        "bench detect --detector ./mine.py --dry-run",
        "bench detect --detector plaplace --picture found.png",
    )
)
def detect(
    detector: Annotated[
        str, typer.Option(help="A name from `bench list detectors`, or a Python file.")
    ],
    suite: SuiteName = "testbed",
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value. May be repeated.")
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            help=(
                "Score this picture instead of prompts, by the suite's model; for detectors that"
                " need no caption. May be repeated."
            )
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the results, which the board is made from.")
    ] = RESULTS,
    store: StorePlace = STORE,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be evaluated.")
    ] = False,
    as_json: Json = False,
    trust: Trust = None,
) -> None:
    """Score the prompts of a suite by one detector, without any mitigation.

    Memorized prompts are compared with clean ones and with those that the suite names as hard
    negatives. Every score goes into a file; `bench leaderboard` makes the board of detectors of
    the files below leaderboards/detections. Interrupted, the same command goes on.
    """
    from bench.base.errors import Unmeasurable, UserError
    from bench.base.parameters import parse_assignments
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.leaderboard.detectors import in_words
    from bench.studies import detection as study
    from bench.suite.load import load_suite
    from bench.suite.needs import lenient

    if picture:
        idle = {"--dry-run": dry_run, "--out": out != RESULTS, "--store": store != STORE}
        if named := [option for option, given in idle.items() if given]:
            raise UserError(
                "--picture scores pictures that are there, and prints the scores: leave"
                f" {', '.join(named)} out"
            )
    loaded, values = load_suite(suite), parse_assignments(parameter or [])
    if dry_run:
        plan = study.plan(lenient(loaded), detector, values)
        print(json.dumps(plan, indent=1) if as_json else study.plan_in_words(plan))
        return
    with reporter() as report, resumable():
        place = pick_device(device)
        if picture:
            found = study.of_pictures(loaded, detector, values, picture, place, report)
            print(
                json.dumps(found, indent=1)
                if as_json
                else "\n".join(f"{score:.6g}  {name}" for name, score in found.items())
            )
            return
        try:
            result = study.detect(loaded, detector, values, store, place, report)
        except Unmeasurable as reason:
            raise UserError(f"detector {detector} has no score here: {reason}") from reason
    path = result.save(out)
    print(json.dumps(result.model_dump(mode="json"), indent=1) if as_json else in_words(result))
    print(f"detection: {path}", file=sys.stderr if as_json else sys.stdout)
