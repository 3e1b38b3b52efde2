"""`bench experiment ...`: what memorization depends on, by models trained for the question."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from bench.base.errors import UserError, visible
from bench.cli.app import Application, app, examples
from bench.cli.options import COMMITTED, Device, Json, grouped, resumable

if TYPE_CHECKING:
    from bench.studies.experiments.by_size import Ask as SizeAsk
    from bench.studies.experiments.solidmark import Ask as MarkAsk

experiment = Application(
    help=(
        "Train models to find out what memorization depends on. Records stand on pages of their"
        " own, never among methods."
    ),
    no_args_is_help=True,
)
app.add_typer(experiment, name="experiment")

TESTBED = "testbed"  # what data is called that the testbed draws
CLASSES = 4  # objects that it draws for memorization by size
ROW_SECONDS = 0.012  # of a row evaluation of Stable Diffusion at 512 pixels on an A100-class GPU


@dataclass(frozen=True)
class PlaceOptions:
    """Where an experiment finds and leaves its files, and whether it is carried out."""

    panel: ClassVar[str] = "Places"

    model: Annotated[
        Path | None, typer.Option(help="Diffusers folder; the embedded model by default.")
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder of captioned pictures, as for `bench finetune`; drawn by the testbed by"
                " default."
            )
        ),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(help="What the page calls the pictures; by default testbed, or the folder."),
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Work folder; runs/experiments/<experiment> by default.")
    ] = None
    records: Annotated[
        Path, typer.Option(help="Folder of the records, which pages are made from.")
    ] = COMMITTED.parent / "experiments"
    device: Device = None
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke run: the same work at the smallest sizes.")
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say what would be trained and evaluated, and how long."
        ),
    ] = False
    as_json: Json = False

    def model_folder(self) -> Path:
        """The model's folder, or the embedded one."""
        from bench.testbed.bundle import BUNDLE

        return self.model or BUNDLE / "pipeline"

    @property
    def data_name(self) -> str:
        """What the page calls the pictures. Raises `UserError` for what can be no page's name."""
        from bench.records.record import NAME

        name = self.name
        if name is None:
            name = TESTBED if self.data is None else self.data.expanduser().resolve().name
        if not re.fullmatch(NAME, name):
            raise UserError(
                f"'{visible(name)}' can be no page's name, which has letters, digits, '_', '-' and"
                " '.' alone: give the pictures another with --name"
            )
        return name

    def pictures(self, out: Path, count: int, draw: Callable[[Path], object]) -> Path:
        """The folder of pictures; so many of the testbed are drawn where they are not there yet."""
        if self.data is not None:
            return self.data
        folder = out / "pictures"
        if sum(1 for _ in folder.glob("*.png")) < count:
            from bench.testbed.sprites import require_extra

            require_extra()
            draw(folder)
        return folder


@dataclass(frozen=True)
class SizeOptions:
    """What is trained and measured."""

    panel: ClassVar[str] = "Trainings"

    sizes: Annotated[str, typer.Option(help="Numbers of training pictures, by commas.")] = (
        "8,16,32,64,128"
    )
    conditioning: Annotated[
        list[str] | None,
        typer.Option(help="true, random or unique labels. May be repeated; all by default."),
    ] = None
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 1
    epochs: Annotated[int, typer.Option(min=1, help="How often each picture is shown.")] = 2_000
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 8
    lr: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 3e-3
    warmup: Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")] = 50
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = 0.01
    ema: Annotated[
        float, typer.Option(min=0, max=0.999999, help="Decay of averaged weights; 0: none.")
    ] = 0.98
    width: Annotated[
        int, typer.Option(min=1, help="Channels of the first level; the others in proportion.")
    ] = 32
    predicts: Annotated[str, typer.Option(help="What models predict: epsilon or v_prediction.")] = (
        "v_prediction"
    )
    generations: Annotated[int, typer.Option(min=4, help="Of each snapshot; half choose.")] = 256
    steps: Annotated[int, typer.Option(min=1, help="Of sampling.")] = 20
    snapshots: Annotated[int, typer.Option(min=1, help="From the middle of training on.")] = 3
    epsilon: Annotated[float, typer.Option(help="EMM: R of at least 1 - epsilon.")] = 0.1
    held_out: Annotated[int, typer.Option(min=0, help="Real pictures for the floor.")] = 64
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0

    def ask(self) -> SizeAsk:
        """What these options ask."""
        from bench.studies.experiments.by_size import Ask

        return Ask(
            sizes=_numbers(self.sizes, "--sizes"),
            conditionings=tuple(self.conditioning or Ask.conditionings),
            seeds=self.seeds,
            held_out=self.held_out,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.lr,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            ema=self.ema,
            width=self.width,
            predicts=self.predicts,
            generations=self.generations,
            steps=self.steps,
            snapshots=self.snapshots,
            epsilon=self.epsilon,
            seed=self.seed,
        )


@dataclass(frozen=True)
class MarkOptions:
    """What is trained and asked."""

    panel: ClassVar[str] = "Keys and trainings"

    pictures: Annotated[int, typer.Option(min=1, help="In all; each dose gets as many.")] = 96
    doses: Annotated[str, typer.Option(help="Views in a round, by commas; 0: never.")] = "0,1,10,50"
    rounds: Annotated[int, typer.Option(min=1, help="How often all views are made.")] = 10
    row: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "base, fine-tuned, random-tokens, embedding-noise or caption-dropout. May be"
                " repeated; all by default."
            )
        ),
    ] = None
    method: Annotated[
        list[str] | None,
        typer.Option(help="Ask the fine-tuned model under this method too. May be repeated."),
    ] = None
    mark: Annotated[str, typer.Option(help="frame (outside of the picture) or patch (centre).")] = (
        "frame"
    )
    width: Annotated[int, typer.Option(min=1, help="Of the frame, or side of the patch.")] = 4
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 16
    lr: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 4e-4
    warmup: Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")] = 100
    ema: Annotated[
        float, typer.Option(min=0, max=0.999999, help="Decay of averaged weights; 0: none.")
    ] = 0.999
    noises: Annotated[int, typer.Option(min=1, help="Answers a picture.")] = 4
    every: Annotated[int, typer.Option(min=1, help="Steps from one pasting to the next.")] = 1
    steps: Annotated[int, typer.Option(min=1, help="Of sampling.")] = 25
    guidance: Annotated[float, typer.Option(min=0, help="1: one row a step.")] = 1.0
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0
    side: Annotated[
        int | None,
        typer.Option(min=1, help="With --dry-run: pixels a side of a model that is not there."),
    ] = None

    def ask(self) -> MarkAsk:
        """What these options ask."""
        from bench.studies.experiments.solidmark import Ask

        if self.mark not in ("frame", "patch"):
            raise UserError(f"--mark is frame or patch, not '{self.mark}'")
        return Ask(
            pictures=self.pictures,
            doses=_numbers(self.doses, "--doses"),
            rounds=self.rounds,
            rows=tuple(self.row or Ask.rows),
            methods=tuple(self.method or ()),
            mark="frame" if self.mark == "frame" else "patch",
            width=self.width,
            batch_size=self.batch_size,
            learning_rate=self.lr,
            warmup=self.warmup,
            ema=self.ema,
            noises=self.noises,
            every=self.every,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed,
        )


@experiment.command(
    "memorization-by-size",
    epilog=examples(
        "bench experiment memorization-by-size",
        "bench experiment memorization-by-size --sizes 16,64,256 --conditioning random --seeds 3",
        "bench experiment memorization-by-size --width 64 --dry-run",
    ),
)
@grouped
def memorization_by_size(places: PlaceOptions, options: SizeOptions) -> None:
    """Count copies by number of training pictures, under true, random and unique labels.

    After Gu et al. 2023: models trained from random weights on nested sets of N pictures, each with
    true, random and unique labels. Interrupted, the same command goes on where it stopped.
    """
    from bench.studies.experiments import by_size
    from bench.testbed.fresh import write_objects

    ask = options.ask()
    if places.quick:
        ask = replace(
            ask,
            sizes=ask.sizes[:2] if len(ask.sizes) > 1 else ask.sizes,
            held_out=4,
            epochs=2,
            generations=4,
            steps=2,
            snapshots=1,
        )
    by_size.check(ask)
    _ = places.data_name  # said before anything is trained, and with the plan
    out = places.out or Path("runs/experiments") / by_size.NAME

    def study(work: Path = out) -> by_size.Study:
        from bench.diffusion.model import pick_device

        data = places.pictures(
            work,
            ask.wanted,
            lambda folder: write_objects(folder, CLASSES, -(-ask.wanted // CLASSES), 1),
        )
        return by_size.Study(ask, places.model_folder(), data, work, pick_device(places.device))

    if places.dry_run:
        found = by_size.plan(ask)
        if (places.model_folder() / "model_index.json").is_file():
            with TemporaryDirectory() as place:
                pace = study(Path(place)).measured_pace()
            generated = found["generations"]
            found["seconds"] = (
                found["training_steps"] * pace["step"] + generated * pace["generation"]
            )
        _print_plan(found, places.as_json)
        return
    _carry_out(study, places)


@experiment.command(
    epilog=examples(
        "bench experiment solidmark",
        "bench experiment solidmark --mark patch --width 16 --row base --row fine-tuned",
        "bench experiment solidmark --model ./stable-diffusion-2-1 --side 256 --width 16"
        " --pictures 5000 --rounds 100 --every 10 --steps 100 --guidance 3 --dry-run",
    )
)
@grouped
def solidmark(places: PlaceOptions, options: MarkOptions) -> None:
    """Ask a model for numbers that were drawn at random and painted on its training pictures.

    After SolidMark (Kriplani et al. 2025): a grey frame is painted around each picture, at doses
    drawn at random; then the model fills in the frame of the picture. Interrupted, the same command
    goes on where it stopped.
    """
    from bench.studies.experiments import solidmark as solid
    from bench.testbed.fresh import write_scenes

    ask = options.ask()
    if places.quick:
        ask = replace(
            ask, pictures=4 * len(ask.doses), rounds=1, rows=ask.rows[:2], noises=1, steps=2
        )
    solid.check(ask)
    _ = places.data_name  # said before anything is trained, and with the plan
    out = places.out or Path("runs/experiments") / solid.NAME

    def study(work: Path = out) -> solid.Study:
        from bench.diffusion.model import pick_device

        data = places.pictures(
            work, ask.pictures, lambda folder: write_scenes(folder, ask.pictures, 1)
        )
        return solid.Study(ask, places.model_folder(), data, work, pick_device(places.device))

    if places.dry_run:
        if (places.model_folder() / "model_index.json").is_file():
            with TemporaryDirectory() as place:
                made = study(Path(place))
                pace = made.measured_pace()
            found = solid.plan(ask, made.factor, made.mark.side)
            found["seconds"] = (
                found["training_steps"] * pace["step"] + found["queries"] * pace["query"]
            )
        else:
            found = solid.plan(ask, solid.FACTOR, options.side)
            rows = found["row_evaluations"] + 3 * ask.batch_size * found["training_steps"]
            scale = (found["side"] / 512) ** 2 if found["side"] else 1.0
            found["gpu_seconds"] = rows * ROW_SECONDS * scale
        _print_plan(found, places.as_json)
        return
    if options.side is not None:
        raise UserError("--side is for --dry-run; a model says its own")
    _carry_out(study, places)


def _carry_out(study: Callable[[], Any], places: PlaceOptions) -> None:
    """Run an experiment, write its record, and print its tables."""
    from bench.base.progress import reporter
    from bench.leaderboard.experiments_page import in_words

    name = places.data_name
    with resumable():
        made = study()
        with reporter() as report:
            record = made.run(name, report)
    path = record.save(places.records)
    print(
        json.dumps(record.model_dump(mode="json"), indent=1) if places.as_json else in_words(record)
    )
    print(f"record: {path}", file=sys.stderr if places.as_json else sys.stdout)


def _print_plan(found: Mapping[str, Any], as_json: bool) -> None:
    print(json.dumps(found, indent=1) if as_json else _plan_in_words(found))


def _plan_in_words(found: Mapping[str, Any]) -> str:
    """The plan for people."""
    lines = [f"{found['experiment']}: {len(found['trainings'])} trainings"]
    lines += [f"  {name:<24} {steps:>8,} steps" for name, steps in found["trainings"].items()]
    shown = {
        "training_steps": "training steps of {batch_size} pictures",
        "pictures": "pictures",
        "generations": "generations",
        "queries": "answers",
        "row_evaluations": "row evaluations",
        "round_trips": "round trips through the autoencoder",
    }
    lines += [
        f"{found[key]:>12,} {text.format(**found)}" for key, text in shown.items() if key in found
    ]
    if found.get("side"):
        lines.append(f"pictures of {found['side']} pixels a side, {found['latents']} latents")
    if "seconds" in found:
        lines.append(f"about {_time(found['seconds'])} at the pace measured here just now")
    if "gpu_seconds" in found:
        lines.append(
            f"about {_time(found['gpu_seconds'])} of a GPU, at {1000 * ROW_SECONDS:g} ms a row"
            " evaluation at 512 pixels (A100-class) and less for smaller pictures; the autoencoder"
            " comes on top. The model is not there, so nothing was measured"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _numbers(given: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in given.split(",") if value.strip())
    except ValueError:
        raise UserError(f"{option} are whole numbers separated by commas, not '{given}'") from None
