"""What the header of a checkpoint in one file says of its model, before anything is loaded.

Such a file has the names of Stability's own code: `model.diffusion_model.` for the UNet,
`first_stage_model.` for the autoencoder, `cond_stage_model.` for the text encoder of Stable
Diffusion 1 and 2, `conditioner.embedders.` for those of Stable Diffusion XL. It says nothing of its
tokenizer and scheduler, which come from a folder of configurations; that the two belong together is
checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.base.errors import UserError, visible
from bench.base.foreign import read_table
from bench.base.safetensors_header import read_header
from bench.diffusion.families import CALLED, SUPPORTED, Family

UNET = "model.diffusion_model."
FIRST, LAST = f"{UNET}input_blocks.0.0.weight", f"{UNET}out.2.weight"
SIZES = f"{UNET}label_emb.0.0.weight"  # of UNets that read sizes: Stable Diffusion XL's
AUTOENCODER = "first_stage_model."
TEXT = ("cond_stage_model.", "conditioner.embedders.")
SECOND_TEXT = "conditioner.embedders.1."
# Parts of names by which models of other kinds are known.
LORA = ("lora_unet_", "lora_te", ".lora_A.", ".lora_B.", ".lora.down.", "hada_w1", "lokr_w1")
TRANSFORMER = ("double_blocks.", "joint_blocks.")
VIDEO = ("time_stack.", "motion_modules.", "time_mixer.")
# Tensors without content, by which trainers of Stable Diffusion XL mark what a model predicts.
PREDICTS_V, ZERO_SNR = "v_pred", "ztsnr"
LONGEST = 80  # characters of a stranger's name that an error shows


def check_checkpoint(file: Path, config: Path, family: Family) -> None:
    """Hold a checkpoint in one file against the folder with its configurations, of this family.

    Raises `UserError`, one line, for a damaged file, for one of another kind (a LoRA, SD 3, FLUX,
    video, inpainting, the refiner, zero terminal SNR), for one that lacks a part, and for a folder
    of another family or width, or that says of another prediction.
    """
    try:
        tensors = read_header(file).tensors
    except ValueError as error:
        raise UserError(
            f"the model in {file} cannot be loaded ({error}); a file is missing or damaged, fetch"
            " or build it again"
        ) from error
    shapes = {name: _shape(about) for name, about in tensors.items()}
    _refuse_others(file, shapes)
    theirs: Family = "sdxl" if any(name.startswith(SECOND_TEXT) for name in shapes) else "sd"
    if theirs != family:
        raise UserError(
            f"{file} is a model of {CALLED[theirs]}, and the configurations in {config} are of"
            f" {CALLED[family]}: give a folder of the same architecture"
        )
    if family == "sdxl" and ZERO_SNR in shapes:
        raise UserError(
            f"{file} is a model of Stable Diffusion XL with zero terminal SNR ({ZERO_SNR}),"
            f" {SUPPORTED.replace('XL are', 'XL without it are')}"
        )
    _refuse_other_config(file, config, shapes)


def _refuse_others(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UserError` for what is no whole model of a kind that can be sampled."""
    if name := _with(shapes, LORA):
        raise UserError(
            f"{file} is a LoRA file ({name}) and no model: merge it into one ([[model.loras]], or"
            " --lora)"
        )
    if name := _with(shapes, TRANSFORMER):
        raise UserError(
            f"{file} is a flow-matching transformer such as SD 3 or FLUX ({name}), {SUPPORTED}"
        )
    if name := _with(shapes, VIDEO):
        raise UserError(f"{file} is a model of video ({name}), {SUPPORTED}")
    if not any(name.startswith(UNET) for name in shapes):
        raise UserError(
            f"{file} is no checkpoint of Stable Diffusion in one file: none of its"
            f" {len(shapes)} tensors begins with {UNET}"
        )
    if SIZES in shapes and not any(name.startswith(TEXT[1]) for name in shapes):
        raise UserError(
            f"{file} is a model that reads more than a text and its sizes ({SIZES}), {SUPPORTED}"
        )
    if SIZES in shapes and not any(name.startswith(SECOND_TEXT) for name in shapes):
        raise UserError(
            f"{file} is the refiner of Stable Diffusion XL (it has one text encoder), which"
            " finishes pictures of the base model; give the base model"
        )
    reads, predicts = shapes.get(FIRST, ()), shapes.get(LAST, ())
    if len(reads) > 1 and predicts and reads[1] > predicts[0]:
        raise UserError(
            f"{file} is an inpainting model or one that edits pictures (its UNet reads {reads[1]}"
            f" channels and predicts {predicts[0]}), {SUPPORTED}"
        )
    for part, beginnings in (("autoencoder", (AUTOENCODER,)), ("text encoder", TEXT)):
        if not any(name.startswith(beginnings) for name in shapes):
            raise UserError(
                f"{file} holds no {part} (no tensor begins with {' or '.join(beginnings)}): take"
                " the whole checkpoint, or a diffusers folder"
            )


def _refuse_other_config(file: Path, config: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UserError` where the folder says of another width of text, or of another
    prediction.
    """
    stated = read_table(config / "unet/config.json").get("cross_attention_dim")
    read = {
        shape[1]
        for name, shape in shapes.items()
        if name.endswith("attn2.to_k.weight") and len(shape) > 1
    }
    if isinstance(stated, int) and read and read != {stated}:
        raise UserError(
            f"{file} reads texts of width {max(read)}, and the UNet in {config} is configured for"
            f" {stated}: give a folder of the same architecture"
        )
    scheduler = read_table(config / "scheduler/scheduler_config.json")
    predicts = scheduler.get("prediction_type", "epsilon")
    if PREDICTS_V in shapes and predicts != "v_prediction":
        raise UserError(
            f"{file} says that it predicts v ({PREDICTS_V}), and the scheduler in {config} is"
            f" configured for {predicts}: give a folder whose scheduler says v_prediction"
        )


def _with(shapes: Mapping[str, tuple[int, ...]], parts: tuple[str, ...]) -> str:
    """The first name that holds one of these parts; empty for none."""
    found = next((name for name in shapes if any(part in name for part in parts)), "")
    return visible(found)[:LONGEST]


def _shape(about: Any) -> tuple[int, ...]:
    """What the header says of a tensor's shape; empty where it says none."""
    shape = about.get("shape") if isinstance(about, dict) else None
    if not isinstance(shape, list) or not all(isinstance(length, int) for length in shape):
        return ()
    return tuple(shape)
