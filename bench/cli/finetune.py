"""`bench finetune`: the experiment that trains a model to memorize, attacks it, prunes it, and
attacks it again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from bench.base.errors import UserError
from bench.cli.app import app, examples
from bench.cli.options import Device, Json, Trust, grouped, resumable

if TYPE_CHECKING:
    import torch

    from bench.studies.finetune.experiment import Protocol
    from bench.studies.finetune.train import Prepared, Training

SMOOTHING = 50  # steps over which the shown loss is averaged


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained on which pictures, and how."""

    panel: ClassVar[str] = "Training"

    model: Annotated[Path, typer.Option(help="Diffusers folder to begin with.")]
    data: Annotated[
        Path,
        typer.Option(
            help=(
                "Pictures with metadata.csv or metadata.jsonl (file_name, text), or NAME.txt beside"
                " each."
            )
        ),
    ]
    duplicate: Annotated[
        int, typer.Option(min=1, help="How many of the pictures are repeated; the paper: 100.")
    ]
    times: Annotated[
        int, typer.Option(min=2, help="How often each of these stands in an epoch; the paper: 50.")
    ]
    steps: Annotated[
        int,
        typer.Option(min=1, help="Steps of the optimizer; more than before goes on from there."),
    ] = 15_000
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 4
    accumulate: Annotated[int, typer.Option(min=1, help="Batches a step.")] = 1
    lr: Annotated[float, typer.Option(min=0, help="Learning rate, constant after the warm-up.")] = (
        1e-5
    )
    warmup: Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")] = 500
    ema: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.999999,
            help="Decay of averaged weights, saved in place of the last ones; 0: none.",
        ),
    ] = 0.0
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the pictures.")] = False
    precision: Annotated[Literal["no", "fp16", "bf16"], typer.Option(help="Mixed precision.")] = (
        "no"
    )
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0
    rank: Annotated[
        int,
        typer.Option(
            min=0,
            max=1024,
            help="Train a LoRA of this rank (alpha the same) in place of the whole UNet; 0: none.",
        ),
    ] = 0

    def training(self) -> Training:
        """The training that these options describe."""
        from bench.studies.finetune.train import Training

        return Training(
            model=self.model,
            data=self.data,
            duplicate=self.duplicate,
            times=self.times,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.lr,
            warmup=self.warmup,
            accumulate=self.accumulate,
            ema=self.ema,
            flip=self.flip,
            precision=self.precision,
            gradient_checkpointing=self.gradient_checkpointing,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
            rank=self.rank,
        )


@dataclass(frozen=True)
class PruningOptions:
    """Which method prunes the fine-tuned model, with which settings."""

    panel: ClassVar[str] = "Pruning"

    method: Annotated[str, typer.Option("--method", help="What prunes.")] = "wanda"
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--parameter",
            help="Of the pruning: name=value,value,... Every combination is a row.",
        ),
    ] = None


@dataclass(frozen=True)
class AttackOptions:
    """How the model is attacked before and after pruning."""

    panel: ClassVar[str] = "Attack"

    fit: Annotated[
        int,
        typer.Option(
            min=1, help="Repeated captions that pruning learns from; the others are judged."
        ),
    ] = 10
    images: Annotated[int, typer.Option(min=2, help="Generations a caption.")] = 50
    clique: Annotated[int, typer.Option(min=2, help="Generations that must agree.")] = 3
    threshold: Annotated[
        str,
        typer.Option(
            help=(
                "calibrated (on clean captions), paper (50.0 unnormalised at 512 pixels: 0.2255),"
                " or a normalised distance."
            )
        ),
    ] = "calibrated"
    rate: Annotated[
        float,
        typer.Option(
            help=(
                "Share of clean captions of which two generations may agree at the calibrated"
                " threshold."
            )
        ),
    ] = 0.01
    calibration_prompts: Annotated[
        int, typer.Option(min=0, help="Clean captions that the threshold is calibrated on.")
    ] = 100
    clean_prompts: Annotated[
        int,
        typer.Option(
            min=0, help="Clean captions that are attacked beside; a flagged one is an error."
        ),
    ] = 16
    clean: Annotated[
        Path | None,
        typer.Option(
            help=(
                "CSV of clean captions (prompt or text); by default those of the pictures that are"
                " not repeated."
            )
        ),
    ] = None
    early_stop: Annotated[
        bool,
        typer.Option(
            "--early-stop",
            help=(
                "Stop generating for a caption once it is identified: the same flags, fewer images."
            ),
        ),
    ] = False
    inference_steps: Annotated[
        int, typer.Option(min=1, help="Denoising steps of a generation.")
    ] = 50
    guidance: Annotated[float, typer.Option(min=0)] = 7.5
    images_batch: Annotated[int, typer.Option(min=1, help="Images sampled together.")] = 8
    sscd: Annotated[
        Path | None,
        typer.Option(help="weights of a copy descriptor, to verify by similarity beside."),
    ] = None
    profile: Annotated[
        str, typer.Option(help="How pictures are prepared for it; see bench show sscd.")
    ] = "nemo"
    similarity: Annotated[float, typer.Option(help="A copy above it.")] = 0.7

    def protocol(self, seed: int) -> Protocol:
        """The protocol that these options describe; `seed` is that of the training."""
        from bench.studies.finetune.experiment import Protocol

        return Protocol(
            fit=self.fit,
            images=self.images,
            clique=self.clique,
            threshold=_threshold(self.threshold),
            calibration_prompts=self.calibration_prompts,
            rate=self.rate,
            clean_prompts=self.clean_prompts,
            early_stop=self.early_stop,
            clean=self.clean,
            steps=self.inference_steps,
            guidance=self.guidance,
            batch_size=self.images_batch,
            sscd=self.sscd,
            profile=self.profile,
            similarity=self.similarity,
            seed=seed,
        )


@app.command(
    epilog=examples(
        "bench finetune --model ./pipeline --data ./pictures --duplicate 100 --times 50"
        " --sscd sscd.torchscript.pt"
    )
)
@grouped
def finetune(
    training_options: TrainingOptions,
    pruning: PruningOptions,
    attack: AttackOptions,
    out: Annotated[
        Path,
        typer.Option(
            help="Work folder: checkpoints, the fine-tuned model, suite, records, result.json."
        ),
    ] = Path("runs/finetune"),
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Only attack, prune, attack; the model is there.")
    ] = False,
    no_attack: Annotated[bool, typer.Option("--no-attack", help="Only train.")] = False,
    save: Annotated[Path | None, typer.Option(help="A second place for the result.")] = None,
    device: Device = None,
    as_json: Json = False,
    trust: Trust = None,
) -> None:
    """Fine-tune a model on repeated pictures, attack it, prune it, attack it again.

    This is the experiment of Chavhan et al. 2024, section 5.4.
    """
    from bench.base.files import write_atomically
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.studies.finetune.experiment import check_early, experiment, table
    from bench.studies.finetune.train import prepare
    from bench.studies.tuning import parse_grid

    if no_attack and no_train:
        raise UserError("--no-train and --no-attack leave nothing to do: leave one of them out")
    if no_attack and save:
        raise UserError("--save is for the result of the attack: leave it or --no-attack out")
    training = training_options.training()
    protocol = attack.protocol(training.seed)
    settings = parse_grid(pruning.parameter) if pruning.parameter else [{}]
    where = pick_device(device)
    prepared = prepare(training, out)
    if not no_attack:
        check_early(prepared, protocol, pruning.method, settings)
    print(plan_text(len(prepared.pairs), training), file=sys.stderr)
    with resumable():
        if not no_train:
            _train(prepared, where)
        if no_attack:
            print(
                json.dumps(prepared.finished(), indent=1)
                if as_json
                else f"model: {prepared.pipeline}"
            )
            return
        with reporter() as report:
            result = experiment(prepared, protocol, pruning.method, settings, where, report)
    content = json.dumps(result, indent=1, sort_keys=True)
    if save:
        write_atomically(save, (content + "\n").encode())
    print(
        content
        if as_json
        else f"{table(result)}\n\nsuite: {out / 'suite.toml'}\nresult: {out / 'result.json'}"
    )


def plan_text(pictures: int, training: Training) -> str:
    """How often the training shows its pictures, in one line."""
    listed = pictures + training.duplicate * (training.times - 1)
    epochs = training.steps * training.batch_size * training.accumulate / listed
    return (
        f"{pictures} pictures, {training.duplicate} of them {training.times} times: {listed} a"
        f" round; {training.steps} steps show each repeated picture about"
        f" {epochs * training.times:,.0f} times and each other one {epochs:,.1f} times"
    )


def _train(prepared: Prepared, device: torch.device) -> None:
    """Train, unless exactly this training is finished, and say how many captions were cut."""
    from bench.base.progress import reporter
    from bench.studies.finetune.train import train

    facts = prepared.finished()
    if facts is None:
        with reporter() as report, _bar(prepared.training.steps) as watch:
            facts = train(prepared, device, report, watch)
    if facts["captions_cut"]:
        print(
            f"bench: {facts['captions_cut']} captions are longer than the text encoder"
            " reads and were cut",
            file=sys.stderr,
        )


def _threshold(given: str) -> float | None:
    from bench.studies.finetune.experiment import paper_threshold

    if given == "calibrated":
        return None
    if given == "paper":
        return paper_threshold()
    try:
        return float(given)
    except ValueError as error:
        raise UserError(
            f"threshold '{given}' must be calibrated, paper, or a number above 0 and at most 1"
        ) from error


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A bar on standard error with the averaged loss and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(TextColumn("train"), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("train", total=steps, loss=float("nan"))
        mean: list[float] = []

        def watch(step: int, loss: float) -> None:
            # also after a resumption, whose first step is no sign of how fast steps are
            if not mean:
                progress.reset(task, total=steps, completed=step)
            mean[:] = [loss if not mean else mean[0] + (loss - mean[0]) / SMOOTHING]
            progress.update(task, completed=step, loss=mean[0])

        yield watch
