"""`bench statistics`: measure a folder of real pictures once, so that suites can name the result as
reference statistics.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.base.errors import UserError
from bench.cli.app import app, examples
from bench.cli.options import STORE, Device, Json, Trust, resumable


@app.command(
    epilog=examples(
        "bench statistics --images val2014 --inception inception-2015-12-05.pt --side 512"
        " --out val2014.npz"
    )
)
def statistics(
    images: Annotated[Path, typer.Option(help="Folder of real pictures; all below it are read.")],
    inception: Annotated[Path, typer.Option(help="Weights of Inception, as clean-fid loads them.")],
    out: Annotated[Path, typer.Option(help="The .npz to write, for `statistics` of metrics.")],
    side: Annotated[
        int | None,
        typer.Option(
            min=8,
            help=(
                "Resize the shorter side to it and keep the centre square; pictures stay as they"
                " are by default."
            ),
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side that the network sees.")] = 299,
    features: Annotated[
        bool,
        typer.Option(
            "--features",
            help=(
                "Keep the features too, float32, which `kid` and `precision_recall` read; 8 KiB a"
                " picture with Inception."
            ),
        ),
    ] = False,
    store: Annotated[
        Path, typer.Option(help="Folder where features are kept, to go on after an interruption.")
    ] = Path(STORE),
    device: Device = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.")
    ] = False,
    as_json: Json = False,
    trust: Trust = None,
) -> None:
    """Measure mean and covariance of the features of real pictures, which FID compares with.

    Interrupted, the same command goes on where it stopped.
    """
    if not inception.is_file():
        raise UserError(
            f"the network {inception} is missing; `bench fetch` gets the one of clean-fid"
        )
    if out.exists() and not force:
        raise UserError(f"{out} is there already; give another name, or --force to write over it")
    from bench.base.progress import reporter
    from bench.diffusion.execution import float32_products
    from bench.diffusion.model import pick_device
    from bench.features.real_pictures import make_statistics

    with reporter() as report, resumable(), float32_products(False):
        made = make_statistics(
            images,
            inception,
            out,
            store / "_real",
            pick_device(device),
            size,
            side,
            report,
            features,
        )
    facts = {
        "pictures": made.n,
        "of": made.pictures,
        "crop": made.crop,
        "network": made.fingerprint,
        "sha256": made.digest,
        "features_kept": features,
        "out": str(out),
    }
    print(
        json.dumps(facts, indent=1)
        if as_json
        else "\n".join(f"{name}: {value}" for name, value in facts.items())
    )
