"""The command that writes a suite file for an auditor's own model, prompts and training
pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.cli.app import app

suite = typer.Typer(help="Suites of your own.", no_args_is_help=True)
app.add_typer(suite, name="suite")
Count = Annotated[int, typer.Option(min=1)]


@suite.callback()
def _group() -> None:
    """Suites of your own."""


@suite.command(
    epilog=(
        "Example:  bench suite new --model ./pipeline --prompts suspicious.csv --images ./training"
        " --out audit.toml --sscd sscd.torchscript.pt"
    )
)
def new(
    model: Annotated[Path | None, typer.Option(help="A diffusers folder.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="CSV with the column prompt; also id, group, reference.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The TOML file to write; prompt lists go beside it.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder of training pictures, matched by the column reference, or by name to the"
                " prompt's id."
            )
        ),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            help="CSV of prompts that nobody suspects, for alignment and picture quality."
        ),
    ] = None,
    sscd: Annotated[Path | None, typer.Option(help="SSCD as TorchScript.")] = None,
    profile: Annotated[
        str, typer.Option(help="How pictures are prepared for SSCD; see bench show sscd.")
    ] = "nemo",
    threshold: Annotated[
        float, typer.Option(help="Similarity above which an image counts as memorized.")
    ] = 0.7,
    clip: Annotated[Path | None, typer.Option(help="open_clip checkpoint or folder.")] = None,
    clip_model: Annotated[
        str, typer.Option(help="Its architecture, where it is a checkpoint: ViT-B-32.")
    ] = "",
    inception: Annotated[Path | None, typer.Option(help="Inception as TorchScript.")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="Reference statistics (npz) made with that Inception.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "name=FOLDER instead of the model's own unet, vae, text_encoder, tokenizer,"
                " scheduler."
            )
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the suite; by default that of the file.")] = "",
    steps: Count = 50,
    guidance: Annotated[float, typer.Option(min=0)] = 7.5,
    images_per_prompt: Count = 4,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of the images, and of the split into fit and memorized prompts."),
    ] = 0,
    fit: Annotated[
        float,
        typer.Option(
            help="Share of the prompts that methods may learn from; no table shows these."
        ),
    ] = 0.25,
    missing: Annotated[
        Literal["refuse", "drop"],
        typer.Option(help="What to do about training pictures that are missing."),
    ] = "refuse",
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that are there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Check a model folder, prompts and training pictures, and write a suite of them.

    Asks for what is missing.
    """
    from bench.base.progress import reporter
    from bench.new_suite.given import Given, ask, parse_parts
    from bench.new_suite.new_suite import new_suite, text

    given = Given(
        model,
        prompts,
        out,
        images,
        clean,
        sscd,
        profile,
        threshold,
        clip,
        clip_model,
        inception,
        statistics,
        parse_parts(part or []),
        name,
        steps,
        guidance,
        images_per_prompt,
        seed,
        fit,
        missing,
    )
    with reporter() as report:
        created = new_suite(ask(given), force, report)
    print(json.dumps(created.as_json(), indent=1) if as_json else text(created))
