"""What lies in a model's folder: which files of each part, in which number type, and pickles, which
are refused.

Nothing is loaded for it: names of files, and the headers of safetensors files, which are JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.base.errors import UserError
from bench.base.safetensors_header import PICKLES, read_header
from bench.diffusion.families import STEMS, family_of

VARIANT = "fp16"  # the one that the hub has of Stable Diffusion


def refuse_pickle(path: Path) -> None:
    """Raises `UserError` for a file that is no safetensors, with how to convert it."""
    if path.is_file() and path.suffix != ".safetensors":
        what = (
            f"{path} is a pickle, which can run any code when it is loaded"
            if path.suffix in PICKLES
            else f"{path} is neither a folder nor a .safetensors file"
        )
        raise UserError(f"{what}; {_how_to_convert(path)}")


def part_variants(folder: Path) -> dict[str, str | None]:
    """By part of the pipeline: None where its full weights are there, `fp16` where only the
    variant's are.

    Raises `UserError` when the folder is no diffusers folder or a part has no safetensors at all.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"the model in {folder} cannot be loaded (it has no model_index.json); a file is"
            " missing or damaged, fetch or build it again"
        )
    stems = STEMS[family_of(folder)]
    return {part: _variant(folder / part, stem) for part, stem in stems.items()}


def weight_files(part: Path, stem: str, variant: str | None) -> list[Path]:
    """The safetensors of one part in a variant, in shards or in one; empty where there are none."""
    infix = f".{variant}" if variant else ""
    shards = sorted(part.glob(f"{stem}{infix}-*-of-*.safetensors"))
    if variant:  # the place of the variant's name in a shard's has changed between releases
        shards += sorted(part.glob(f"{stem}-*-of-*{infix}.safetensors"))
    whole = part / f"{stem}{infix}.safetensors"
    return (
        [whole]
        if whole.is_file()
        else [file for file in shards if variant or f".{VARIANT}." not in file.name]
    )


def stored_types(path: Path) -> dict[str, Any]:
    """`format` (`folder`, `fp16 variant` or `single file`) and by part the number types of its
    weights, most frequent first.

    What cannot be read is left out.
    """
    if path.is_file():
        return {"format": "single file", "types": {"all": _types([path])}}
    try:
        variants = part_variants(path)
    except UserError:
        return {}
    types = {
        part: _types(weight_files(path / part, STEMS["sdxl"][part], variant))
        for part, variant in variants.items()
    }
    return {
        "format": "fp16 variant" if set(variants.values()) == {VARIANT} else "folder",
        "types": types,
    }


def _types(files: list[Path]) -> list[str]:
    counts: dict[str, int] = {}
    for file in files:
        try:
            for about in read_header(file).tensors.values():
                counts[about["dtype"]] = counts.get(about["dtype"], 0) + 1
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(counts, key=lambda name: (-counts[name], name))


def _variant(part: Path, stem: str) -> str | None:
    for variant in (None, VARIANT):
        if weight_files(part, stem, variant):
            return variant
    if any(file.suffix in PICKLES for file in part.glob("*")):
        raise UserError(
            f"{part} holds its weights as pickles only, which can run any code when they are"
            f" loaded; {_how_to_convert(part.parent)}"
        )
    raise UserError(
        f"the model in {part.parent} cannot be loaded (no {part.name}/{stem}.safetensors); a file"
        " is missing or damaged, fetch or build it again"
    )


def _how_to_convert(path: Path) -> str:
    loader = "from_single_file" if path.is_file() else "from_pretrained"
    return (
        "take the .safetensors of the same model, or convert it, where you trust its source, with"
        f" diffusers: `StableDiffusionPipeline.{loader}(OLD).save_pretrained(NEW)`, and give the"
        " folder NEW"
    )
