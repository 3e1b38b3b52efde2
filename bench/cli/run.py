"""`bench run`: run a method through a suite, plan it, or make a part of its images."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from bench.base import limits
from bench.base.errors import UserError
from bench.cli.app import app, examples
from bench.cli.options import COMMITTED, Json, PlaceOptions, SuiteName, grouped, resumable

if TYPE_CHECKING:
    from bench.diffusion.execution import Execution
    from bench.records.record import RunRecord
    from bench.registry.registry import Entry
    from bench.running.executors import Executor
    from bench.running.shard import Shard
    from bench.suite.suite import Suite

MOST_SEEDS = limits.GENERATIONS  # each makes all images again


@dataclass(frozen=True)
class ExperimentOptions:
    """What is measured: a method with its parameters, under a suite."""

    panel: ClassVar[str] = "What is measured"

    method: Annotated[
        str, typer.Option("--method", help="A name from `bench list methods`, or a Python file.")
    ]
    suite: SuiteName = "testbed"
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", help="name=value; see `bench show METHOD`. May be repeated."
        ),
    ] = None
    tuned: Annotated[
        Path | None,
        typer.Option(help="A file of `bench tune`: run with the parameters that it chose."),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(help="Only this many prompts of every role; gives another fingerprint."),
    ] = None
    seeds: Annotated[
        int,
        typer.Option(
            help="Generations of every prompt, each from other seeds; the row gets their spread."
        ),
    ] = 1

    def __post_init__(self) -> None:
        if self.seeds > MOST_SEEDS:
            raise UserError(f"--seeds must be at most {MOST_SEEDS}, not {self.seeds}")

    def resolved(self, suite: Suite) -> tuple[Entry, dict[str, Any], dict[str, Any] | None]:
        """The method's entry, its parameters, and what the record says about how these were chosen
        (None where they were given).

        Raises `UserError` for a method that is not known, for a tuning file of another method or
        suite, and for both kinds of parameters at once.
        """
        from bench.base.parameters import parse_assignments
        from bench.registry import registry

        given = parse_assignments(self.parameter or [])
        entry = registry.find("method", self.method)
        if self.tuned is None:
            return entry, given, None
        from bench.studies.tuning import tuned_parameters

        if given:
            raise UserError(
                "--tuned and -p exclude each other: parameters are either chosen by `bench tune` or"
                " given"
            )
        return (entry, *tuned_parameters(self.tuned, suite, self.method))


@dataclass(frozen=True)
class ExecutorOptions:
    """Who makes the images: this process, workers, or one job of a scheduler."""

    panel: ClassVar[str] = "Who makes the images"

    executor: Annotated[
        str, typer.Option(help="Who makes the images: local (this process) or ray (docs/scale.md).")
    ] = "local"
    workers: Annotated[
        int | None,
        typer.Option(help="With ray: worker processes; by default one for each core, or each GPU."),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(
            help="With ray: a cluster (host:port or auto); by default workers on this machine."
        ),
    ] = None
    gpus: Annotated[
        float | None,
        typer.Option(
            help="With ray on GPUs: how many a worker takes; 0.5 puts two workers on one."
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            help=(
                "i/n: make only the i-th of n parts of the images and measure nothing; for"
                " schedulers."
            )
        ),
    ] = None

    def parsed_shard(self) -> Shard | None:
        """The part that `--shard` names, None for the whole run."""
        from bench.running.shard import Shard

        shard = Shard.parse(self.shard) if self.shard is not None else None
        if shard and self.executor != "local":
            raise UserError(
                "--shard and --executor ray exclude each other: a scheduler gives shards to"
                " machines, or Ray gives units to its workers"
            )
        return shard

    @contextmanager
    def started(self) -> Iterator[Executor]:
        """The executor, ended on exit. Raises `UserError` for options that it does not take."""
        from bench.running.executors import Local
        from bench.running.ray import Ray

        if self.executor not in ("local", "ray"):
            raise UserError(f"--executor is local or ray, not '{self.executor}'")
        if self.executor == "local":
            for option in ("workers", "address", "gpus"):
                if getattr(self, option) is not None:
                    raise UserError(f"--{option} is for --executor ray")
            yield Local()
            return
        ray = Ray(self.workers, self.address, 1.0 if self.gpus is None else self.gpus)
        try:
            yield ray
        finally:
            ray.close()


@dataclass(frozen=True)
class ExecutionOptions:
    """How the model is executed: what changes speed and memory, and no number beyond rounding."""

    panel: ClassVar[str] = "How the model is executed"

    batch_size: Annotated[
        str | None,
        typer.Option(
            help=(
                "Images sampled together: a number, or auto, the most that fits; the suite's by"
                " default."
            )
        ),
    ] = None
    memory: Annotated[
        float | None,
        typer.Option(help="Ceiling in GiB for --batch-size auto; by default most of what is free."),
    ] = None
    channels_last: Annotated[
        bool,
        typer.Option("--channels-last", help="Weights of convolutions in channels-last order."),
    ] = False
    attention: Annotated[
        str, typer.Option(help="sdpa, fused; or sliced, slower in less memory.")
    ] = "sdpa"
    vae_slicing: Annotated[bool, typer.Option("--vae-slicing", help="Decode image by image.")] = (
        False
    )
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the UNet; calls with hooks run uncompiled.")
    ] = False
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let GPUs round float32 factors to 10 bits.")
    ] = False

    def checked(self, executor: ExecutorOptions) -> Execution:
        """The execution that these options describe, given who makes the images."""
        from bench.diffusion.execution import Execution, parsed_batch_size

        execution = Execution(
            batch_size=parsed_batch_size(self.batch_size),
            memory_gib=self.memory,
            channels_last=self.channels_last,
            attention=self.attention,  # type: ignore[arg-type]  # checked by `Execution`
            vae_slicing=self.vae_slicing,
            compile=self.compile,
            tf32=self.tf32,
        )
        shared = executor.executor == "ray" and (executor.gpus or 1) < 1
        if shared and execution.batch_size == "auto" and self.memory is None:
            raise UserError(
                "workers that share a GPU must know what each may take: give --memory beside"
                " --batch-size auto"
            )
        return execution


@app.command(
    epilog=examples(
        "bench run --method wanda",
        "bench run --method wanda -p sparsity=0.05 --suite testbed",
        "bench run --method ./mine.py --limit 4",
        "bench run --method none --suite sd14-mem500 --dry-run",
    )
)
@grouped
def run(
    experiment: ExperimentOptions,
    place: PlaceOptions,
    executor: ExecutorOptions,
    execution: ExecutionOptions,
    keep_images: Annotated[
        str,
        typer.Option(
            "--keep-images",
            help="none, sample or all: pictures kept once they have their features.",
        ),
    ] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run one method through a suite and print its row.

    Interrupted, the same command goes on where it stopped.
    """
    from bench.suite.load import load_suite

    shard = executor.parsed_shard()
    suite = load_suite(experiment.suite, experiment.limit)
    method, parameters, tuning = experiment.resolved(suite)

    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.running.kept_pictures import keep_images_of
    from bench.running.plan import plan, plan_text
    from bench.running.prepare import prepare
    from bench.running.run import finished
    from bench.running.run import run as run_experiment
    from bench.running.shard import make_shard, shard_plan
    from bench.suite.needs import lenient

    checked_execution = execution.checked(executor)
    if dry_run:
        suite = lenient(suite)
    with executor.started() as started_executor, reporter() as report:
        prepared = prepare(
            suite,
            method,
            parameters,
            place.store,
            pick_device(place.device),
            seeds=experiment.seeds,
            execution=checked_execution,
            keep=keep_images_of(keep_images),
        )
        if shard and not dry_run:
            with resumable():
                made = make_shard(*prepared, shard, started_executor, report)
            print(
                json.dumps(made, indent=1)
                if as_json
                else _shard_text(prepared.experiment.method_name, suite.name, made)
            )
            return
        record = None
        if not dry_run:
            record = finished(prepared.experiment, prepared.engine, place.records, tuning)
        if record is None:
            planned = plan(*prepared, place.records)
            if shard:
                planned |= shard_plan(prepared.experiment, prepared.images, shard)
            if dry_run:
                print(json.dumps(planned, indent=1) if as_json else plan_text(planned, suite))
                return
            print(plan_text(planned, suite), file=sys.stderr)
            with resumable():
                record = run_experiment(*prepared, place.records, started_executor, report, tuning)
    if as_json:
        print(record.model_dump_json(indent=1))
    else:
        _print_row(record, place.records)


def _shard_text(method: str, suite: str, made: dict[str, Any]) -> str:
    """What a shard made, and the command that measures the run when all shards are through."""
    words = iter(sys.argv[1:])
    without_shard = [
        word
        for word in words
        if not word.startswith("--shard=") and not (word == "--shard" and next(words, None))
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
        f" this makes what may be missing and measures:\n  bench {shlex.join(without_shard)}"
    )


def _print_row(record: RunRecord, records: Path) -> None:
    """Print the record's row beside that of `none` under the same protocol, wherever `none` was
    measured: in the folder of the run's records, or among the committed ones.
    """
    from rich.console import Console

    from bench.leaderboard.leaderboard import row_table
    from bench.records.record import load_records

    others = []
    for folder in (records, COMMITTED):
        found, damaged = load_records(folder)
        others += found
        for broken in damaged:  # a damaged record of another run must not hide the measured row
            print(f"bench: {broken.why}", file=sys.stderr)
    Console().print(row_table(record, others))
    print(f"record: {record.path(records)}")
