"""`bench audit`: does a fine-tuned model give back the pictures that it was trained on?"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from bench.base import limits
from bench.base.errors import UserError
from bench.cli.app import app, examples
from bench.cli.options import Device, Json, Trust, grouped, resumable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.auditing.asked import Asked
    from bench.auditing.result import Found

FOUND = 3  # exit code of --fail-above


@dataclass(frozen=True)
class SubjectOptions:
    """What is audited, and the pictures that it was trained on."""

    panel: ClassVar[str] = "What is audited"

    data: Annotated[
        Path,
        typer.Option(
            help=(
                "Folder of the training pictures: metadata.csv or .jsonl, NAME.txt beside each,"
                " kohya's NUMBER_words folders, or *.tar."
            )
        ),
    ]
    model: Annotated[
        Path | None,
        typer.Option(
            help=(
                "The model: a diffusers folder, or a checkpoint in one .safetensors file; by"
                " default that of --like."
            )
        ),
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(help="FILE, FILE:W or FILE:W,W_TE. May be repeated: all are merged."),
    ] = None
    epochs: Annotated[
        list[Path] | None,
        typer.Option(help="An earlier save of the first LoRA: a row each. May be repeated."),
    ] = None
    embedding: Annotated[
        list[Path] | None,
        typer.Option(help="A textual inversion, called as its file says. May be repeated."),
    ] = None
    base: Annotated[
        Path | None,
        typer.Option(help="What a fully fine-tuned model began as; a LoRA's base is the model."),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            help=(
                "For a checkpoint in one file: a diffusers folder of the same architecture, without"
                " weights; by default the base's, or that of --like."
            )
        ),
    ] = None
    holdout: Annotated[
        Path | None, typer.Option(help="Pictures of the same source that were never trained on.")
    ] = None
    generations: Annotated[
        Path | None,
        typer.Option(
            help="Compare this folder of generations, made anywhere, instead of a model's."
        ),
    ] = None
    holdout_random: Annotated[
        bool, typer.Option("--holdout-random", help="They were drawn at random: gives a p-value.")
    ] = False


@dataclass(frozen=True)
class CaptionOptions:
    """How pictures are called."""

    panel: ClassVar[str] = "Captions and prompts"

    trigger: Annotated[
        str, typer.Option(help="The word that calls up what was learned; found where it can be.")
    ] = ""
    caption_column: Annotated[str, typer.Option(help="Of metadata.csv or metadata.jsonl.")] = "text"
    instance_prompt: Annotated[
        str | None, typer.Option(help="One prompt for all pictures, as DreamBooth trains.")
    ] = None
    novel: Annotated[
        Path | None,
        typer.Option(help="Scenes that no caption describes, one a line; eight fixed ones else."),
    ] = None


@dataclass(frozen=True)
class EffortOptions:
    """How much is tried."""

    panel: ClassVar[str] = "How much is tried"

    quick: Annotated[
        bool, typer.Option("--quick", help="A first answer: fewer images, three weights.")
    ] = False
    images: Annotated[
        int | None, typer.Option(min=1, help="Images of each caption; 8, or 4 with --quick.")
    ] = None
    limit: Annotated[int, typer.Option(min=1, help="Pictures looked for, evenly spread.")] = 200
    weights: Annotated[
        str, typer.Option(help="Of the strength curve, by commas, beside 0 and 1.")
    ] = ""
    remedy: Annotated[
        list[str] | None,
        typer.Option(
            help="METHOD or METHOD:name=value,name=value; none for no remedy. May be repeated."
        ),
    ] = None
    no_attack: Annotated[
        bool, typer.Option("--no-attack", help="Leave out the attacker who knows the base.")
    ] = False
    seed: Annotated[int, typer.Option(min=0, help="Of all images.")] = 0


@dataclass(frozen=True)
class MeasureOptions:
    """With what it is measured, and how it is sampled."""

    panel: ClassVar[str] = "Sampler and judges"

    like: Annotated[
        str,
        typer.Option(
            help=(
                "Suite whose sampler, copy descriptor and threshold are used: testbed where no"
                " model is named, else sd14-mem500."
            )
        ),
    ] = ""
    sscd: Annotated[Path | None, typer.Option(help="Weights of another copy descriptor.")] = None
    profile: Annotated[str, typer.Option(help="How it prepares pictures: bench show sscd.")] = ""
    threshold: Annotated[
        float | None, typer.Option(help="Similarity from which an image is a copy.")
    ] = None
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help=(
                "Set that similarity on images of the base; by default only to make a borrowed one"
                " stricter, where there are 50 images."
            ),
        ),
    ] = None
    steps: Annotated[int | None, typer.Option(min=1)] = None
    guidance: Annotated[float | None, typer.Option(min=0)] = None
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = ""
    batch_size: Annotated[int | None, typer.Option(min=1)] = None
    clip_skip: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=(
                "Layers of the text encoder that are left out, as diffusers counts; by default as"
                " the LoRA's header says."
            ),
        ),
    ] = None
    chunks: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=limits.CHUNKS,
            help="Chunks of 75 tokens that are read of a prompt; by default as the header says.",
        ),
    ] = None
    no_flip: Annotated[
        bool, typer.Option("--no-flip", help="The training did not mirror pictures.")
    ] = False
    buckets: Annotated[
        bool | None,
        typer.Option(
            "--buckets/--no-buckets",
            help=(
                "Ask for each picture in the sides of its bucket, as kohya's scripts train; by"
                " default as the LoRA's header says, else as squares."
            ),
        ),
    ] = None
    random_crops: Annotated[
        bool, typer.Option("--random-crops", help="The training cut pictures at random places.")
    ] = False


@dataclass(frozen=True)
class OutputOptions:
    """Where it works, and what it prints."""

    panel: ClassVar[str] = "Output"

    out: Annotated[
        Path, typer.Option(help="Work folder: suite, images, records, page, audit.json.")
    ] = Path("runs/audit")
    store: Annotated[str, typer.Option(help="Where images are kept; <out>/store by default.")] = ""
    fail_above: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help=(
                "Exit with code 3 where a larger share of pictures is copied or extractable; those"
                " that the base gives too do not count."
            ),
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the inputs, print the plan and stop.")
    ] = False
    device: Device = None
    trust: Trust = None


def _asked(
    subject: SubjectOptions,
    captions: CaptionOptions,
    effort: EffortOptions,
    measure: MeasureOptions,
    output: OutputOptions,
) -> Asked:
    from bench.auditing.asked import Asked, parse_lora, parse_remedies, parse_weights

    return Asked(
        data=subject.data.expanduser(),
        out=output.out.expanduser(),
        model=subject.model.expanduser() if subject.model else None,
        base=subject.base.expanduser() if subject.base else None,
        config=subject.config.expanduser() if subject.config else None,
        loras=tuple(parse_lora(text) for text in subject.lora or ()),
        epochs=tuple(path.expanduser() for path in subject.epochs or ()),
        embeddings=tuple(path.expanduser() for path in subject.embedding or ()),
        holdout=subject.holdout.expanduser() if subject.holdout else None,
        holdout_random=subject.holdout_random,
        trigger=captions.trigger.strip(),
        caption_column=captions.caption_column,
        instance_prompt=captions.instance_prompt,
        novel=captions.novel,
        like=measure.like,
        images=effort.images or 0,
        limit=effort.limit,
        quick=effort.quick,
        weights=parse_weights(effort.weights),
        remedies=parse_remedies(effort.remedy),
        attack=not effort.no_attack,
        flips=not measure.no_flip,
        random_crops=measure.random_crops,
        buckets=measure.buckets,
        sscd=measure.sscd,
        profile=measure.profile,
        threshold=measure.threshold,
        calibrate=measure.calibrate,
        steps=measure.steps,
        guidance=measure.guidance,
        dtype=measure.dtype,
        batch_size=measure.batch_size,
        clip_skip=measure.clip_skip,
        chunks=measure.chunks,
        seed=effort.seed,
        store=output.store,
    )


@app.command(
    epilog=examples(
        "bench audit --lora style.safetensors:0.8 --model ./sd15 --data ./pictures",
        "bench audit --lora style.safetensors --model ./sd15 --data ./pictures"
        " --holdout ./unused --quick",
        "bench audit --model mine.safetensors --base v1-5.safetensors --data ./pictures",
        "bench audit --generations ./made-elsewhere --data ./pictures",
        "bench audit --model ./finetuned --base ./sd15 --data ./pictures --fail-above 0",
    )
)
@grouped
def audit(
    subject: SubjectOptions,
    captions: CaptionOptions,
    effort: EffortOptions,
    measure: MeasureOptions,
    output: OutputOptions,
    as_json: Json = False,
) -> None:
    """Say which training pictures a fine-tuned model gives back, and how easily.

    Reads a folder of pictures as it was trained on, generates, compares, and writes one page.
    Interrupted, the same command goes on where it stopped.
    """
    from bench.auditing.audit import run_audit
    from bench.auditing.folders import compare_folders
    from bench.auditing.output import plan_in_words, write
    from bench.auditing.plan import plan
    from bench.auditing.ready import ready, try_model
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device

    asked = _asked(subject, captions, effort, measure, output)
    if subject.generations:
        _refuse_model(subject, captions, effort, measure, output)
        with reporter() as report, resumable():
            device = pick_device(output.device)
            found = compare_folders(asked, subject.generations.expanduser(), device, report)
            files = write(found, asked.out)
        _tell(found, files, as_json, output.fail_above)
        return
    with reporter() as report:
        prepared = ready(asked, pick_device(output.device), report)
        planned: dict[str, Any] = plan(prepared, try_model(prepared))
        if output.dry_run:
            print(json.dumps(planned, indent=1) if as_json else plan_in_words(planned))
            return
        print(plan_in_words(planned), file=sys.stderr)
        with resumable():
            found = run_audit(prepared)
            files = write(found, asked.out)
    _tell(found, files, as_json, output.fail_above)


# Options that mean nothing where generations are given, by the group that has them.
OF_MODELS: dict[str, tuple[str, ...]] = {
    "subject": ("model", "lora", "base", "config", "epochs", "embedding", "holdout_random"),
    "captions": ("trigger", "novel"),
    "effort": ("quick", "images", "weights", "remedy", "no_attack", "seed"),
    "measure": (
        *("calibrate", "steps", "guidance", "dtype", "batch_size"),
        *("buckets", "clip_skip", "chunks"),
    ),
    "output": ("dry_run", "store"),
}


def _refuse_model(
    subject: SubjectOptions,
    captions: CaptionOptions,
    effort: EffortOptions,
    measure: MeasureOptions,
    output: OutputOptions,
) -> None:
    """Raises `UserError` for options that mean nothing where generations are given."""
    groups = {
        "subject": subject,
        "captions": captions,
        "effort": effort,
        "measure": measure,
        "output": output,
    }
    if others := [
        f"--{name.replace('_', '-')}"
        for group, names in OF_MODELS.items()
        for name in names
        if getattr(groups[group], name) not in (None, [], getattr(type(groups[group]), name))
    ]:
        raise UserError(
            f"--generations compares pictures that are there, and asks no model: leave"
            f" {', '.join(others)} out"
        )


def _tell(found: Found, files: Mapping[str, Path], as_json: bool, fail_above: float | None) -> None:
    """Print the answer; exit with code 3 where more pictures come back than are allowed."""
    from bench.auditing.output import text

    print(json.dumps(found.as_json(), indent=1) if as_json else text(found, files))
    if fail_above is not None and found.given_away > fail_above:
        print(
            f"bench: {found.given_away:.1%} of the training pictures are copied or extractable,"
            f" more than {fail_above:.1%} (--fail-above)",
            file=sys.stderr,
        )
        raise typer.Exit(FOUND)
