"""`bench testbed`: make the embedded model again, print what was measured on it, and render scenes
that it never saw.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import Application, app, examples
from bench.cli.options import Json, resumable

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
