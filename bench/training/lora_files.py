"""LoRA files as trainers write them: kohya's spelling with its header, and that of diffusers and
peft.

Names and header as in kohya-ss/sd-scripts (`networks/lora.py`, `train_network.py`) and diffusers'
`save_lora_weights`. The header says what the training was, so that whoever audits the file can tell
how often each picture was shown; it holds no clock, and the same training gives the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from bench.base.files import write_atomically
from bench.base.safetensors_header import with_metadata
from bench.suite.lora_files import PEFT
from bench.training.loop import Course
from bench.training.lora import Lora


@dataclass(frozen=True)
class Folder:
    """A folder of training pictures: how often each stands in an epoch, and their captions."""

    name: str
    repeats: int
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """What a kohya header tells of a training besides the LoRA and the course."""

    folders: tuple[Folder, ...]
    side: int  # pixels
    batch_size: int
    epochs: int
    base: str  # which kind of model the LoRA is for
    flip: bool = False  # whether half of the pictures were mirrored

    @property
    def listed(self) -> int:
        """Pictures of an epoch, repeats counted."""
        return sum(folder.repeats * len(folder.captions) for folder in self.folders)


def kohya_tensors(lora: Lora) -> dict[str, Tensor]:
    """A UNet's LoRA in kohya's spelling, fp16 with the alpha beside each pair of factors."""
    found = {}
    for path, (down, up) in lora.factors().items():
        name = "lora_unet_" + path.replace(".", "_")
        found[f"{name}.lora_down.weight"] = _half(down)
        found[f"{name}.lora_up.weight"] = _half(up)
        found[f"{name}.alpha"] = torch.tensor(lora.alpha, dtype=torch.float16)
    return found


def peft_tensors(lora: Lora) -> dict[str, Tensor]:
    """A UNet's LoRA in the spelling of diffusers and peft, fp16; `peft_header` has the alpha."""
    found = {}
    for path, (down, up) in lora.factors().items():
        found[f"unet.{path}.lora_A.weight"] = _half(down)
        found[f"unet.{path}.lora_B.weight"] = _half(up)
    return found


def peft_header(lora: Lora) -> dict[str, str]:
    """What diffusers keeps of peft's settings."""
    said = {
        "unet.r": lora.rank,
        "unet.lora_alpha": lora.alpha,
        "unet.target_modules": sorted(lora.paths),
    }
    return {"format": "pt", PEFT: json.dumps(said, sort_keys=True)}


def kohya_header(lora: Lora, course: Course, told: Told, epoch: int, steps: int) -> dict[str, str]:
    """kohya's header of a file saved after `epoch` epochs and so many steps."""
    said: dict[str, object] = {
        "network_dim": lora.rank,
        "network_alpha": lora.alpha,
        "base_model_version": told.base,
        "v2": False,
        "resolution": (told.side, told.side),
        "clip_skip": None,
        "max_token_length": None,
        "num_train_images": told.listed,
        "num_reg_images": 0,
        "num_epochs": told.epochs,
        "epoch": epoch,
        "steps": steps,
        "max_train_steps": course.steps,
        "total_batch_size": told.batch_size * course.accumulate,
        "learning_rate": course.learning_rate,
        "lr_warmup_steps": course.warmup,
        "max_grad_norm": course.largest_gradient,
        "mixed_precision": course.precision,
        "seed": course.seed,
        "enable_bucket": False,
        "flip_aug": told.flip,
        "random_crop": False,
        "shuffle_caption": False,
        "keep_tokens": 0,
        "caption_dropout_rate": 0.0,
    }
    tables = {
        "dataset_dirs": {
            folder.name: {"n_repeats": folder.repeats, "img_count": len(folder.captions)}
            for folder in told.folders
        },
        "reg_dataset_dirs": {},
        "tag_frequency": {folder.name: _tags(folder.captions) for folder in told.folders},
    }
    return {f"ss_{name}": str(value) for name, value in said.items()} | {
        f"ss_{name}": json.dumps(value) for name, value in tables.items()
    }


def write_lora(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a LoRA file; readers see the old one or the whole new one.

    Raises `UserError` when it cannot be written.
    """
    write_atomically(file, with_metadata(save(dict(tensors)), header))


def _tags(captions: Sequence[str]) -> dict[str, int]:
    """How many captions have each tag, as kohya counts them: what stands between commas, in lower
    case.
    """
    tags = (tag.strip().lower() for caption in captions for tag in caption.split(","))
    return dict(Counter(tag for tag in tags if tag))


def _half(factor: Tensor) -> Tensor:
    return factor.cpu().to(torch.float16).contiguous()
