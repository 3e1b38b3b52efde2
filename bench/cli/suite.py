"""`bench suite new`: write a suite for an auditor's own model, prompts and training pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from bench.cli.app import Application, app, examples
from bench.cli.options import Json, grouped

if TYPE_CHECKING:
    from bench.new_suite.given import Given

suite = Application(help="Suites of your own.", no_args_is_help=True)
app.add_typer(suite, name="suite")
Count = Annotated[int, typer.Option(min=1)]


@suite.callback()
def _group() -> None:
    """Suites of your own."""


@dataclass(frozen=True)
class SubjectOptions:
    """What is audited: a model, its prompts and its training pictures."""

    panel: ClassVar[str] = "What is audited"

    model: Annotated[Path | None, typer.Option(help="A diffusers folder.")] = None
    prompts: Annotated[
        Path | None, typer.Option(help="CSV with the column prompt; also id, group, reference.")
    ] = None
    images: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder of training pictures, matched by the column reference, or by name to the"
                " prompt's id."
            )
        ),
    ] = None
    clean: Annotated[
        Path | None,
        typer.Option(
            help="CSV of prompts that nobody suspects, for alignment and picture quality."
        ),
    ] = None
    part: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "name=FOLDER instead of the model's own unet, vae, text_encoder, tokenizer,"
                " scheduler."
            )
        ),
    ] = None


@dataclass(frozen=True)
class ScorerOptions:
    """The networks and statistics that images are measured with."""

    panel: ClassVar[str] = "What measures it"

    sscd: Annotated[Path | None, typer.Option(help="SSCD's weights.")] = None
    profile: Annotated[
        str, typer.Option(help="How pictures are prepared for SSCD; see bench show sscd.")
    ] = "nemo"
    threshold: Annotated[
        float, typer.Option(help="Similarity above which an image counts as memorized.")
    ] = 0.7
    clip: Annotated[Path | None, typer.Option(help="open_clip checkpoint or folder.")] = None
    clip_model: Annotated[
        str, typer.Option(help="Its architecture, where it is a checkpoint: ViT-B-32.")
    ] = ""
    inception: Annotated[Path | None, typer.Option(help="Inception's weights.")] = None
    statistics: Annotated[
        Path | None, typer.Option(help="Reference statistics (npz) made with that Inception.")
    ] = None


@dataclass(frozen=True)
class ProtocolOptions:
    """How many images are made, how, and which prompts methods may learn from."""

    panel: ClassVar[str] = "Protocol"

    name: Annotated[str, typer.Option(help="Of the suite; by default that of the file.")] = ""
    steps: Count = 50
    guidance: Annotated[float, typer.Option(min=0)] = 7.5
    images_per_prompt: Count = 4
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of the images, and of the split into fit and memorized prompts."),
    ] = 0
    fit: Annotated[
        float,
        typer.Option(
            help="Share of the prompts that methods may learn from; no table shows these."
        ),
    ] = 0.25


@dataclass(frozen=True)
class FileOptions:
    """What is written, and what stands in the way of it."""

    panel: ClassVar[str] = "What is written"

    out: Annotated[
        Path | None, typer.Option(help="The TOML file to write; prompt lists go beside it.")
    ] = None
    missing: Annotated[
        Literal["refuse", "drop"],
        typer.Option(help="What to do about training pictures that are missing."),
    ] = "refuse"
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False


def _given(
    subject: SubjectOptions, scorers: ScorerOptions, protocol: ProtocolOptions, files: FileOptions
) -> Given:
    from bench.new_suite.given import Given, parse_parts

    return Given(
        model=subject.model,
        prompts=subject.prompts,
        out=files.out,
        images=subject.images,
        clean=subject.clean,
        sscd=scorers.sscd,
        profile=scorers.profile,
        threshold=scorers.threshold,
        clip=scorers.clip,
        clip_model=scorers.clip_model,
        inception=scorers.inception,
        statistics=scorers.statistics,
        parts=parse_parts(subject.part or []),
        name=protocol.name,
        steps=protocol.steps,
        guidance=protocol.guidance,
        images_per_prompt=protocol.images_per_prompt,
        seed=protocol.seed,
        fit=protocol.fit,
        missing=files.missing,
    )


@suite.command(
    epilog=examples(
        "bench suite new --model ./pipeline --prompts suspicious.csv --images ./training"
        " --out audit.toml --sscd sscd.torchscript.pt"
    )
)
@grouped
def new(
    subject: SubjectOptions,
    scorers: ScorerOptions,
    protocol: ProtocolOptions,
    files: FileOptions,
    as_json: Json = False,
) -> None:
    """Check a model folder, prompts and training pictures, and write a suite of them.

    Asks for what is missing.
    """
    from bench.base.progress import reporter
    from bench.new_suite.given import ask
    from bench.new_suite.new_suite import new_suite, text

    given = _given(subject, scorers, protocol, files)
    with reporter() as report:
        created = new_suite(ask(given), files.force, report)
    print(json.dumps(created.as_json(), indent=1) if as_json else text(created))
