"""Which family of models a diffusers folder holds, and which models nobody here can sample.

Both are told by the folder's tables alone, before anything is loaded: `model_index.json` and, where
they are there, the configurations of UNet and scheduler. What reaches into a model (a method, an
attack, a detector) says for which families it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.base.errors import UserError, visible
from bench.base.files import is_regular_file
from bench.base.foreign import read_table

if TYPE_CHECKING:
    from bench.suite.suite import Suite

# sd: Stable Diffusion 1 and 2, one text encoder; sdxl: Stable Diffusion XL, two of them, and a
# UNet that also reads a pooled text and the sizes of the picture
Family = Literal["sd", "sdxl"]
FAMILIES: tuple[Family, ...] = ("sd", "sdxl")
CALLED: dict[Family, str] = {"sd": "Stable Diffusion 1 and 2", "sdxl": "Stable Diffusion XL"}
# The parts of a pipeline that hold weights, and what their files are called.
STEMS: dict[Family, dict[str, str]] = {
    "sd": {
        "unet": "diffusion_pytorch_model",
        "vae": "diffusion_pytorch_model",
        "text_encoder": "model",
    }
}
STEMS["sdxl"] = STEMS["sd"] | {"text_encoder_2": "model"}
SUPPORTED = "not supported yet (Stable Diffusion 1, 2 and XL are)"
FLOW_MATCHING = ("StableDiffusion3", "Flux")
# Schedulers of models that were distilled to a few steps.
DISTILLED = ("LCMScheduler", "TCDScheduler")


def parts_of(pipe: Any) -> dict[str, Any]:
    """The networks of a loaded pipeline by name: UNet, autoencoder, and one text encoder or two."""
    found = {name: getattr(pipe, name, None) for name in STEMS["sdxl"]}
    return {name: network for name, network in found.items() if network is not None}


def family_of_pipeline(pipe: Any) -> Family:
    """The family of a loaded pipeline."""
    return "sd" if getattr(pipe, "text_encoder_2", None) is None else "sdxl"


def family_of_suite(suite: Suite) -> Family | None:
    """The family of a suite's model; None where its files are not here, or say nothing.

    Raises `UserError` for a model that cannot be sampled here.
    """
    settings = suite.settings.model
    place = suite.place(settings.config or settings.path)
    return family_of(place) if is_regular_file(place / "model_index.json") else None


def family_of(folder: Path) -> Family:
    """The family of the model in a diffusers folder.

    Raises `UserError`, one line that names it, for a model of another kind: SD 3, FLUX and other
    transformers, the refiner of Stable Diffusion XL, models distilled to a few steps, inpainting
    models, and models of Stable Diffusion XL whose noise schedule ends in pure noise.
    """
    index = read_table(folder / "model_index.json")
    parts = {name for name, value in index.items() if _is_part(name, value)}
    called = visible(str(index.get("_class_name", "the model")))[:60]
    if called.startswith(FLOW_MATCHING):
        raise UserError(f"{folder}: {called} is a flow-matching transformer, {SUPPORTED}")
    if others := sorted(parts & {"transformer", "prior", "decoder", "text_encoder_3"}):
        raise UserError(f"{folder}: {called} has the part {others[0]}, {SUPPORTED}")
    unet = _table_of(folder, "unet", "config.json")
    reads, predicts = unet.get("in_channels"), unet.get("out_channels")
    if isinstance(reads, int) and isinstance(predicts, int) and reads > predicts:
        raise UserError(
            f"{folder} is an inpainting model or one that edits pictures (its UNet reads {reads}"
            f" channels and predicts {predicts}), {SUPPORTED}"
        )
    if "text_encoder_2" not in parts:
        if called.startswith("StableDiffusionXL"):
            raise UserError(
                f"{folder}: {called} has no text_encoder_2 in its model_index.json; a file is"
                " damaged, fetch or build it again"
            )
        return "sd"
    if "text_encoder" not in parts:
        raise UserError(
            f"{folder} is the refiner of Stable Diffusion XL (it has text_encoder_2 only), which"
            " finishes pictures of the base model; give the base model"
        )
    _refuse_distilled(folder, unet, _table_of(folder, "scheduler", "scheduler_config.json"))
    return "sdxl"


def refuse_family(family: Family | None, families: tuple[Family, ...], what: str) -> None:
    """Raises `UserError` where `what`, such as "method wen", does not work on a family of models.
    None is a family that is not known yet.
    """
    if family is None or family in families:
        return
    # A stranger may have declared a family that does not exist.
    works = " and ".join(CALLED.get(one, visible(str(one))) for one in families)
    raise UserError(f"{what} works on {works}, and the model is {CALLED[family]}")


def refuse_chunks(suite: Suite, works: bool, what: str) -> None:
    """Raises `UserError` where `what`, such as "method clip_pad", does not work on prompts in
    several chunks and the suite has them.
    """
    chunks = suite.settings.model.chunks
    if chunks > 1 and not works:
        raise UserError(
            f"{what} takes the places of an embedding for the tokens of one text, and suite"
            f" {suite.name} reads prompts in {chunks} chunks ([model] chunks)"
        )


def _is_part(name: str, value: Any) -> bool:
    """Whether an entry of model_index.json names a part that is there."""
    return not name.startswith("_") and isinstance(value, list) and any(value)


def _table_of(folder: Path, part: str, name: str) -> dict[str, Any]:
    """A part's configuration. Empty where it is missing or damaged, which loading will say."""
    try:
        return read_table(folder / part / name)
    except UserError:
        return {}


def _refuse_distilled(folder: Path, unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    kind = str(scheduler.get("_class_name"))
    few_steps = "a model distilled to a few steps (turbo, lightning, LCM)"
    if unet.get("time_cond_proj_dim") is not None:
        raise UserError(
            f"{folder} is {few_steps}: its UNet reads the guidance scale (time_cond_proj_dim),"
            f" {SUPPORTED}"
        )
    ancestral = kind == "EulerAncestralDiscreteScheduler"
    trailing = scheduler.get("timestep_spacing") == "trailing"
    if kind in DISTILLED or (ancestral and trailing):
        raise UserError(
            f"{folder} is {few_steps}: its scheduler is {visible(kind)[:60]}"
            f"{' with the spacing trailing' if ancestral else ''}, {SUPPORTED}"
        )
    if scheduler.get("rescale_betas_zero_snr"):
        raise UserError(
            f"{folder} is a model of Stable Diffusion XL with zero terminal SNR"
            f" (rescale_betas_zero_snr), {SUPPORTED.replace('XL are', 'XL without it are')}"
        )
