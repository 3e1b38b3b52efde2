"""`bench lora`: LoRA files that are made out of others, so that a remedy travels with the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.base.errors import UserError
from bench.base.text import size_text
from bench.cli.app import Application, app, examples
from bench.cli.options import Device, Json

lora = Application(help="LoRA files out of others.", no_args_is_help=True)
app.add_typer(lora, name="lora")
Out = Annotated[Path, typer.Option(help="LoRA file to write (.safetensors).")]
Strip = Annotated[
    bool,
    typer.Option(
        "--strip-header", help="Leave out what the header tells of the training: folders, tags."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]


@lora.callback()
def _group() -> None:
    """LoRA files out of others."""


@lora.command(
    epilog=examples(
        "bench lora scale style.safetensors 0.7 --out softer.safetensors",
        "bench lora scale style.safetensors 1 --strip-header --out silent.safetensors",
    )
)
def scale(
    file: Annotated[Path, typer.Argument(help="A LoRA file.")],
    weight: Annotated[float, typer.Argument(help="What it is to act like at weight 1.")],
    out: Out,
    text_weight: Annotated[
        float | None, typer.Option(help="Of the text encoder; the same by default, 0 leaves it.")
    ] = None,
    strip_header: Strip = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a LoRA file that acts at weight 1 as another does at a smaller weight.

    Alphas are changed and no factor is, where the file states alphas.
    """
    _refuse_out(out, [file], force)
    from bench.diffusion.lora.file import read_lora
    from bench.diffusion.lora.merge import Strength
    from bench.diffusion.lora.rescale import rescaled
    from bench.diffusion.lora.write import write_file

    strength = Strength(weight, weight if text_weight is None else text_weight)
    tensors, header = rescaled(read_lora(file.expanduser()), strength, strip_header)
    _tell(out, write_file(out, tensors, header), as_json)


@lora.command(
    epilog=examples(
        "bench lora filter style.safetensors --model ./sd15 --drop 0.5 --out kept.safetensors",
        "bench lora filter --model ./finetuned --base ./sd15 --out kept.safetensors",
    )
)
def filter(
    out: Out,
    files: Annotated[
        list[str] | None,
        typer.Argument(help="FILE, FILE:W or FILE:W,W_TE; several are filtered as one."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="What they were trained on: a folder or a .safetensors file."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Without FILE: what the model was fine-tuned from, as a whole."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="For a checkpoint in one file, as bench audit has it.")
    ] = None,
    like: Annotated[str, typer.Option(help="Suite whose model is used where none is named.")] = "",
    drop: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the channels that is dropped.")
    ] = 0.25,
    rank_share: Annotated[
        float,
        typer.Option(help="Share of a base weight's energy in its principal subspace, below 1."),
    ] = 0.9,
    strip_header: Strip = False,
    force: Force = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write what `baf` leaves of a fine-tuning as a LoRA file.

    The channels that lie least along the weights of the base model are dropped, over all files and
    layers together (`bench show baf`).
    """
    from bench.auditing.asked import Asked, parse_lora
    from bench.auditing.filtered import filtered_lora
    from bench.diffusion.model import pick_device

    asked = Asked(
        data=Path(),
        out=out,
        model=model.expanduser() if model else None,
        base=base.expanduser() if base else None,
        config=config.expanduser() if config else None,
        loras=tuple(parse_lora(text, "FILE") for text in files or ()),
        like=like,
        dtype="float32",
    )
    _refuse_out(out, [one.file for one in asked.loras], force)
    parameters = {"q": drop, "rho": rank_share}
    digest = filtered_lora(asked, parameters, strip_header, pick_device(device))
    _tell(out, digest, as_json)


def _refuse_out(out: Path, read: list[Path], force: bool) -> None:
    """Raises `UserError` for a name that no reader takes for a LoRA file, for a file that is read,
    and for one that is there and not to be written over.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} has to end in .safetensors: that is what is written")
    for path in read:
        if out.exists() and path.expanduser().exists() and out.samefile(path.expanduser()):
            raise UserError(f"--out {out} is the file that is read: give another name")
    if out.exists() and not force:
        raise UserError(f"{out} is there already; give another name, or --force to write over it")


def _tell(out: Path, digest: str, as_json: bool) -> None:
    facts: dict[str, Any] = {"out": str(out), "bytes": out.stat().st_size, "sha256": digest}
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        print(f"{out}: {size_text(facts['bytes'])}, digest {digest[:12]}")
