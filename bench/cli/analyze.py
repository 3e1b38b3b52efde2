"""`bench analyze ...`: what can be learned about a method besides its row on the board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.base.errors import UserError
from bench.cli.app import Application, app, examples
from bench.cli.options import STORE, Device, Json, StorePlace, SuiteName, Trust, resumable

analyze = Application(
    help=(
        "Look inside a method: what its masks hold, how far they agree, and what models of subsets"
        " of the prompts do."
    ),
    no_args_is_help=True,
)
app.add_typer(analyze, name="analyze")

MaskedMethodName = Annotated[
    str, typer.Option("--method", help="A method that offers masks, by name or as a Python file.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", "--parameter", help="name=value, as in `bench run`. May be repeated."),
]


@analyze.command(
    epilog=examples(
        "bench analyze masks --suite testbed",
        "bench analyze masks --suite testbed -p sparsity=0.05 --subsets 5 --size 4"
        " --out runs/masks",
    )
)
def masks(
    suite: SuiteName = "testbed",
    method: MaskedMethodName = "wanda",
    parameter: Parameters = None,
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


@analyze.command(
    epilog=examples(
        "bench analyze subsets --suite testbed -p sparsity=0.1 --subsets 6",
        "bench analyze subsets --suite testbed --sizes 4,16 --subsets 3 --left-out 8 --fid",
        "bench analyze subsets --suite sd15-mem500 --held-out 440 --images 1 --dry-run",
    )
)
def subsets(
    suite: SuiteName = "testbed",
    method: MaskedMethodName = "wanda",
    parameter: Parameters = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Fit prompts in a subset, separated by commas; may be repeated. By default 10 to 50"
                " where there are 50 fit prompts, else 4, 8, 12 and 16."
            )
        ),
    ] = None,
    subsets: Annotated[
        int, typer.Option(help="Random subsets of each size, or all where there are fewer.")
    ] = 10,
    seed: Annotated[
        int, typer.Option(min=0, help="Of drawing the subsets and the random masks.")
    ] = 0,
    held_out: Annotated[
        int, typer.Option(help="Held-out memorized prompts that every model is judged on.")
    ] = 24,
    left_out: Annotated[
        int, typer.Option(help="Fit prompts outside its subset that a model is judged on too.")
    ] = 0,
    images: Annotated[
        int, typer.Option(help="Images of each of these; with one, seeds are not compared.")
    ] = 2,
    clean: Annotated[int, typer.Option(help="Clean prompts, one image each, for CLIP score.")] = 32,
    fid: Annotated[
        bool, typer.Option("--fid", help="Also FID, of one subset a size, over the suite's images.")
    ] = False,
    control: Annotated[
        bool, typer.Option(help="Also models of random masks with as many weights in every layer.")
    ] = True,
    store: StorePlace = STORE,
    device: Device = None,
    trust: Trust = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the tables and plots; runs/analysis/subsets/<suite> by default."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Does pruning on a few memorized prompts help on others? Models of random subsets, compared.

    After figures 1 to 4 of Chavhan et al. 2024: masks of subsets by UNet call and layer; copies and
    CLIP score outside the subset, beside none, wen and random masks; and whether the models give
    the same pictures. Interrupted, the same command goes on where it stopped.
    """
    from bench.base.parameters import parse_assignments
    from bench.base.progress import reporter
    from bench.diffusion.execution import float32_products
    from bench.diffusion.model import pick_device
    from bench.studies.subset_models import Asked
    from bench.studies.subset_study import SubsetStudy, plan_text, text
    from bench.suite.load import load_suite
    from bench.suite.needs import lenient

    asked = Asked(held_out, left_out, images, clean, fid)
    values, numbers = parse_assignments(parameter or []), _numbers(sizes or [])
    loaded = load_suite(suite)
    if dry_run:
        loaded = lenient(loaded)
    study = SubsetStudy(loaded, method, values, numbers, subsets, seed, asked, control)
    if dry_run:
        plan = study.plan(store, pick_device(device))
        print(json.dumps(plan, indent=1) if as_json else plan_text(plan))
        return
    folder = out or Path("runs/analysis/subsets") / loaded.name
    with reporter() as report, resumable(), float32_products(False):
        facts = study.run(store, folder, pick_device(device), report)
    print(json.dumps(facts, indent=1, allow_nan=False) if as_json else text(facts))


def _numbers(given: list[str]) -> list[int]:
    """The sizes that `--sizes` lists; none where it is not given. Raises `UserError` for anything
    else than whole numbers, such as a comma alone.
    """
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    try:
        if given and not words:
            raise ValueError
        return [int(word) for word in words]
    except ValueError:
        raise UserError(
            f"--sizes are whole numbers separated by commas, not '{', '.join(given)}'"
        ) from None


@analyze.command(
    epilog=examples(
        "bench analyze locality --suite testbed",
        "bench analyze locality --members 8 --transfer 6 -p wanda.sparsity=0.1",
        "bench analyze locality --picture verbatim-0700-11 --rounds 5",
        "bench analyze locality --suite sd14-mem500 --members 100 --dry-run",
    )
)
def locality(
    suite: SuiteName = "testbed",
    members: Annotated[int, typer.Option(help="Embeddings in each of the five populations.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of every search.")] = 50,
    init: Annotated[
        str, typer.Option(help="Where searches begin: normal, prompt or other, as in attack dori.")
    ] = "normal",
    picture: Annotated[
        str,
        typer.Option(
            help=(
                "Id of the memorized prompt whose picture is searched for from many beginnings; the"
                " most copied one by default."
            )
        ),
    ] = "",
    images: Annotated[int, typer.Option(min=1, help="Generations with each embedding.")] = 4,
    transfer: Annotated[
        int, typer.Option(min=0, help="Triggers in the transfer matrix; 0 leaves it out.")
    ] = 8,
    rounds: Annotated[
        int,
        typer.Option(
            min=0, help="Rounds of pruning all triggers found and searching again (expensive)."
        ),
    ] = 0,
    searches: Annotated[int, typer.Option(min=1, help="Searches of a picture in a round.")] = 4,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help=(
                "A method that finds the weights of a prompt; wanda and nemo by default. The first"
                " one prunes. May be repeated."
            ),
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--parameter",
            help="dori.name=value, or of a method: wanda.name=value. May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the tables and plots; runs/analysis/locality/<suite> by default."
        ),
    ] = None,
    store: StorePlace = STORE,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be evaluated.")
    ] = False,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Is a memorized picture stored in one place? Triggers of one picture, beside controls.

    Searches find embeddings that bring one memorized picture back. How far these are apart, and
    whether they use the same weights, stands beside the same of other memorized pictures, of clean
    captions, of a picture never trained on, and of one trigger under other noise. Interrupted, the
    same command goes on.
    """
    from bench.base.parameters import parse_assignments
    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.studies.locality.parts import Ask, by_name, resolve
    from bench.studies.locality.plan import plan, plan_in_words
    from bench.studies.locality.study import study_locality
    from bench.suite.load import load_suite
    from bench.suite.needs import lenient

    finders = tuple(method or ("wanda", "nemo"))
    values = by_name(parse_assignments(parameter or []), finders)
    ask = Ask(members, steps, init, picture, images, transfer, rounds, searches, finders, values)
    loaded = load_suite(suite)
    if dry_run:
        planned = plan(lenient(loaded), ask)
        print(json.dumps(planned, indent=1) if as_json else plan_in_words(planned))
        return
    with reporter() as report, resumable():
        parts = resolve(loaded, ask, store, pick_device(device))
        folder = out or Path("runs/analysis/locality") / loaded.name
        facts = study_locality(parts, folder, report)
    words = "\n\n".join(facts["conclusions"])
    print(
        json.dumps(facts, indent=1, allow_nan=False)
        if as_json
        else "\n".join([words, "", *facts["files"]])
    )
