"""`bench testbed`: make the embedded model again, print what was measured on it, render scenes that
it never saw, and train a LoRA on such scenes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.base.errors import UserError
from bench.cli.app import Application, app, examples
from bench.cli.options import Device, Json, resumable

testbed = Application(
    help="The embedded default: how it is made and what was measured on it.", no_args_is_help=True
)
app.add_typer(testbed, name="testbed")


@testbed.command("build", epilog=examples("bench testbed build --plan cpu"))
def testbed_build(
    plan: Annotated[
        str,
        typer.Option(
            help="cpu (32x32, hours on two cores), gpu (64x64), tiny (minutes; memorizes nothing)."
        ),
    ] = "cpu",
    work: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Checkpoints and finished parts, from which the same command goes on; by default a"
                " folder of the cache."
            )
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the bundle goes; <work>/bundle by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only these stages.")] = None,
) -> None:
    """Make the testbed from scratch: data, model, scorers, reference statistics, manifest.

    Seeded and resumable: interrupted, the same command goes on where it stopped.
    """
    from bench.base.errors import UnknownName
    from bench.diffusion.model import pick_device
    from bench.testbed.build import STAGES, Workshop, default_work, run_stages
    from bench.testbed.plan import PLANS
    from bench.testbed.sprites import require_extra

    if plan not in PLANS:
        raise UnknownName("plan", plan, PLANS)
    for stage in only or ():
        if stage not in STAGES:
            raise UnknownName("stage", stage, STAGES)
    require_extra()
    folder = work or default_work()
    shop = Workshop(PLANS[plan], folder, pick_device(device), out or folder / "bundle")
    with resumable():
        run_stages(shop, tuple(only) if only else tuple(STAGES))
    print(f"bundle: {shop.bundle}")


@testbed.command("info", epilog=examples("bench testbed info"))
def testbed_info(
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle's folder; the embedded one by default.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help=(
                "Measure the acceptance figures again (minutes), and write them into the manifest."
            ),
        ),
    ] = False,
    sheets: Annotated[
        Path | None, typer.Option(help="With --measure: a folder for contact sheets (PNG).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what was measured on a bundle and whether it meets each acceptance figure."""
    from bench.testbed.bundle import BUNDLE, info_facts, info_text, read_manifest

    if sheets and not measure:
        raise UserError("--sheets shows what --measure generates: give both or none")
    folder = bundle or BUNDLE
    manifest = read_manifest(folder)
    if measure:
        from bench.base.progress import reporter
        from bench.testbed.acceptance import measure_bundle
        from bench.testbed.sprites import require_extra

        require_extra()

        with reporter() as report:
            manifest = measure_bundle(folder, sheets, report)
    print(json.dumps(info_facts(manifest), indent=1) if as_json else info_text(manifest))


@testbed.command(epilog=examples("bench testbed scenes --out scenes --count 160 --seed 1"))
def scenes(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and metadata.csv.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Not that of the embedded model (0).")] = 1,
) -> None:
    """Render captioned scenes that the embedded model never saw, to fine-tune it on."""
    from bench.testbed.fresh import write_scenes
    from bench.testbed.sprites import require_extra

    require_extra()
    write_scenes(out, count, seed)
    print(f"wrote {count} captioned pictures: {out}")


@testbed.command(epilog=examples("bench testbed removal --out bench/suites"))
def removal(
    out: Annotated[Path, typer.Option(help="Folder for the two lists.")],
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle's folder; the embedded one by default.")
    ] = None,
) -> None:
    """Write the prompt lists of the suite testbed-removal.

    They are canaries that the embedded model copies, each with a clean caption of its objects to
    train on, and further such captions to judge.
    """
    from bench.testbed.bundle import BUNDLE
    from bench.testbed.removal import write_removal_lists

    for file in write_removal_lists(bundle or BUNDLE, out):
        print(f"wrote {file}")


@testbed.command(
    epilog=examples(
        "bench testbed subject --out runs/subject --dry-run",
        "bench testbed subject --out runs/subject --measure",
    )
)
def subject(
    out: Annotated[Path, typer.Option(help="Folder for pictures, LoRA files and checkpoints.")],
    rank: Annotated[int, typer.Option(min=1, max=1024, help="Of the LoRA.")] = 16,
    alpha: Annotated[
        int, typer.Option(min=1, max=1024, help="The change is scaled by alpha / rank.")
    ] = 16,
    epochs: Annotated[
        int, typer.Option(min=1, help="Each shows the pictures 64, 16, 4 and 1 times, by folder.")
    ] = 50,
    save_every: Annotated[int, typer.Option(min=1, help="Epochs between saved files.")] = 10,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Not that of the embedded model (0).")] = 2,
    measure: Annotated[
        bool, typer.Option("--measure", help="Count copies by folder too (minutes).")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes, and train nothing.")
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a LoRA of the embedded model that learns some of 24 pictures by heart.

    Its pictures stand in folders as kohya's trainer reads them, with 12 others that it is not
    trained on: something to audit whose truth is known. Interrupted, the same command goes on where
    it stopped.
    """
    from tempfile import TemporaryDirectory

    from bench.base.progress import reporter
    from bench.diffusion.model import pick_device
    from bench.testbed import subject as made
    from bench.testbed.bundle import BUNDLE
    from bench.testbed.plan import CPU_PLAN
    from bench.testbed.sprites import require_extra

    require_extra()
    settings = made.Settings(rank, alpha, epochs, save_every, learning_rate=lr, seed=seed)
    model, where = BUNDLE / "pipeline", pick_device(device)
    if dry_run:
        with TemporaryDirectory() as place:
            made.write_pictures(Path(place), seed, CPU_PLAN.side)
            seconds = made.Training(Path(place), settings, model, where).pace()
        cost = made.cost(settings, seconds)
        print(json.dumps(cost, indent=1) if as_json else made.cost_text(cost))
        return
    made.write_pictures(out, seed, CPU_PLAN.side)
    with resumable(), reporter() as report:
        training = made.Training(out, settings, model, where, report)
        cost = made.cost(settings, training.pace())
        print(made.cost_text(cost), file=sys.stderr)
        facts = training.train()
        found = made.measure(out, settings, report) if measure else {}
    if as_json:
        print(json.dumps({"training": facts, "measured": found}, indent=1))
    else:
        print("\n\n".join([*([made.table(found)] if found else []), f"LoRA: {training.last}"]))
