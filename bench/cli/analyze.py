"""`bench analyze ...`: what can be learned about a method besides its row on the board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import Application, app, examples
from bench.cli.options import Device, SuiteName

analyze = Application(
    help="Look inside a method: what its masks hold and how far they agree.", no_args_is_help=True
)
app.add_typer(analyze, name="analyze")


@analyze.callback()
def _commands() -> None:
    """Keeps `masks` a command of its own while it is the only one."""


@analyze.command(
    epilog=examples(
        "bench analyze masks --suite testbed",
        "bench analyze masks --suite testbed -p sparsity=0.05 --subsets 5 --size 4"
        " --out runs/masks",
    )
)
def masks(
    suite: SuiteName = "testbed",
    method: Annotated[
        str,
        typer.Option("--method", help="A method that offers masks, by name or as a Python file."),
    ] = "wanda",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="name=value, as in `bench run`. May be repeated."),
    ] = None,
    subsets: Annotated[
        int, typer.Option(help="Random subsets of the fit prompts whose masks are compared.")
    ] = 10,
    size: Annotated[
        int | None, typer.Option(help="Fit prompts in every subset; half of them by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of drawing the subsets.")] = 0,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the tables and plots; runs/analysis/masks/<suite> by default."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Masks of a pruning method: density, agreement, and change over UNet calls.

    Agreement is the intersection over union (IoU) of the masks that subsets of the prompts give.
    """
    from bench.base.parameters import parse_assignments
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.studies.mask_study import SubsetDraw, masked_method, study_masks, text
    from bench.suite.load import load_suite

    loaded_suite = load_suite(suite)
    label = " ".join([method, *(parameter or [])])
    masked = masked_method(method, parse_assignments(parameter or []))
    with reporter() as report:
        facts = study_masks(
            loaded_suite,
            method,
            masked,
            label,
            SubsetDraw(subsets, size, seed),
            out or Path("runs/analysis/masks") / loaded_suite.name,
            pick_device(device),
            report,
        )
    print(json.dumps(facts, indent=1, allow_nan=False) if as_json else text(facts, label))
