"""The command that runs a method through a suite, plans it, or makes a part of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.base.errors import UserError
from bench.cli.app import app
from bench.cli.options import COMMITTED, RECORDS, STORE, Json, Records, resumable

if TYPE_CHECKING:
    from bench.records.record import RunRecord
    from bench.running.executors import Executor

EXAMPLES = (
    "Examples:  bench run --method wanda   |   bench run --method wanda -p sparsity=0.05 --suite"
    " testbed   |   bench run --method ./mine.py --limit 4   |   bench run --method none --suite"
    " sd14-mem500 --dry-run"
)


@app.command(epilog=EXAMPLES)
def run(
    method: Annotated[
        str, typer.Option("--method", help="A name from `bench list methods`, or a Python file.")
    ],
    suite: Annotated[
        str, typer.Option("--suite", help="A name from `bench list suites`, or a TOML file.")
    ] = "testbed",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", help="name=value; see `bench show METHOD`. May be repeated."
        ),
    ] = None,
    records: Records = RECORDS,
    store: Annotated[
        str,
        typer.Option(
            help=(
                "Where images and features are kept: a folder, or a URL such as s3://bucket/folder."
            )
        ),
    ] = STORE,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU by default where there is one.")
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(help="Take the parameters that `bench tune` chose from this file of its."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Only this many prompts of every role; gives another fingerprint."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Independent generations of every image; the row gets their spread.")
    ] = 1,
    executor: Annotated[
        str, typer.Option(help="Who makes the images: local (this process) or ray (docs/scale.md).")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(help="With ray: worker processes; by default one for each core, or each GPU."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="With ray: a cluster (host:port or auto); by default workers on this machine."
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            help="With ray on GPUs: how many a worker takes; 0.5 puts two workers on one."
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help=(
                "i/n: make only the i-th of n parts of the images and measure nothing; for"
                " schedulers."
            )
        ),
    ] = None,
    keep_images: Annotated[
        str,
        typer.Option(
            "--keep-images",
            help="none, sample or all: pictures kept once they have their features.",
        ),
    ] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help=(
                "Images sampled together: a number, or auto, the most that fits; the suite's by"
                " default."
            )
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(help="Ceiling in GiB for --batch-size auto; by default most of what is free."),
    ] = None,
    channels_last: Annotated[
        bool,
        typer.Option("--channels-last", help="Weights of convolutions in channels-last order."),
    ] = False,
    attention: Annotated[
        str, typer.Option(help="sdpa, fused; or sliced, slower in less memory.")
    ] = "sdpa",
    vae_slicing: Annotated[
        bool, typer.Option("--vae-slicing", help="Decode image by image.")
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the UNet; calls with hooks run uncompiled.")
    ] = False,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let GPUs round float32 factors to 10 bits.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run one method through a suite and print its row.

    Interrupted, the same command goes on where it stopped.
    """
    from bench.running.shard import Shard, make_shard, shard_plan
    from bench.suite.load import load_suite

    part = Shard.parse(shard) if shard is not None else None
    if part and executor != "local":
        raise UserError(
            "--shard and --executor ray exclude each other: a scheduler gives shards to machines,"
            " or Ray gives units to its workers"
        )

    chosen = load_suite(suite, limit)
    from bench.base.parameters import parse_assignments
    from bench.registry import registry

    values = parse_assignments(parameter or [])
    registry.find("method", method)
    tuning = None
    if tuned is not None:
        from bench.studies.tuning import tuned_parameters

        if values:
            raise UserError(
                "--tuned and -p exclude each other: parameters are either chosen by `bench tune` or"
                " given"
            )
        values, tuning = tuned_parameters(tuned, chosen, method)
    from bench.base.progress import reporter
    from bench.diffusion.execution import Execution, parsed_batch_size
    from bench.diffusion.model import pick_device
    from bench.running import plan as planning
    from bench.running.images import keep_images_of
    from bench.running.run import Run
    from bench.suite.needs import lenient

    execution = Execution(
        parsed_batch_size(batch_size), memory, channels_last, attention, vae_slicing, compile_, tf32
    )  # type: ignore[arg-type]
    if executor == "ray" and execution.batch_size == "auto" and memory is None and (gpus or 1) < 1:
        raise UserError(
            "workers that share a GPU must know what each may take: give --memory beside"
            " --batch-size auto"
        )
    if dry_run:
        chosen = lenient(chosen)
    with executor_of(executor, workers, address, gpus) as hands, reporter() as report:
        this = Run.resolve(
            chosen, method, values, records, store, pick_device(device), report, seeds, execution
        )
        this.tuning, this.executor, this.keep_images = tuning, hands, keep_images_of(keep_images)
        if part and not dry_run:
            with resumable():
                made = make_shard(this, part)
            print(
                json.dumps(made, indent=1)
                if as_json
                else _shard_text(this.method_name, chosen.name, made)
            )
            return
        record = None if dry_run else this.finished()
        if record is None:
            plan = planning.plan(this) | (shard_plan(this, part) if part else {})
            if dry_run:
                print(json.dumps(plan, indent=1) if as_json else planning.text(plan, chosen))
                return
            print(planning.text(plan, chosen), file=sys.stderr)
            with resumable():
                record = this.execute()
    if as_json:
        print(record.model_dump_json(indent=1))
    else:
        _print_row(record, records)


def _shard_text(method: str, suite: str, made: dict[str, Any]) -> str:
    given = iter(sys.argv[1:])
    rest = [
        word
        for word in given
        if not word.startswith("--shard=") and not (word == "--shard" and next(given, None))
    ]
    left = made["images_left"]
    others = (
        f"{left} images of the run are missing; when the other shards are through"
        if left
        else "all images of the run are there"
    )
    return (
        f"shard {made['shard']} of {method} on {suite}: {made['units']} of {made['units_of_run']}"
        f" units, {made['shard_images']} images, {made['images_made']} of them made now\n{others},"
        f" this makes what may be missing and measures:\n  bench {shlex.join(rest)}"
    )


def _print_row(record: RunRecord, records: Path) -> None:
    from rich.console import Console

    from bench.leaderboard.leaderboard import row_table
    from bench.records.record import load_records

    # `none` from the same protocol, wherever it was measured: here, or in the committed records.
    others = []
    for folder in (records, COMMITTED):
        found, damaged = load_records(folder)
        others += found
        for one in damaged:  # the row is measured; somebody else's damaged record must not hide it
            print(f"bench: {one.why}", file=sys.stderr)
    Console().print(row_table(record, others))
    print(f"record: {record.path(records)}")


@contextmanager
def executor_of(
    name: str, workers: int | None = None, address: str | None = None, gpus: float | None = None
) -> Iterator[Executor]:
    """The executor of the command line, ended on exit."""
    from bench.running.executors import Local
    from bench.running.ray import Ray

    if name not in ("local", "ray"):
        raise UserError(f"--executor is local or ray, not '{name}'")
    if name == "local":
        for option, value in (("--workers", workers), ("--address", address), ("--gpus", gpus)):
            if value is not None:
                raise UserError(f"{option} is for --executor ray")
        yield Local()
        return
    ray = Ray(workers, address, 1.0 if gpus is None else gpus)
    try:
        yield ray
    finally:
        ray.close()
