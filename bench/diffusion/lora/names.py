"""Which module of the model a name in a LoRA file means.

Names are never cut at underscores. Every module of the model is spelled as each trainer would spell
it, and the file's names are looked up: kohya's (dots as underscores, Stability's or diffusers'
paths) and those of diffusers and peft (dots).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.base.errors import UserError

# The parts of a pipeline that a LoRA may change, with the beginnings that trainers give them.
KOHYA = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
# What older versions of diffusers call the four matrices of an attention layer.
PROCESSORS = {
    "processor.to_q_lora": "to_q",
    "processor.to_k_lora": "to_k",
    "processor.to_v_lora": "to_v",
    "processor.to_out_lora": "to_out.0",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


@dataclass(frozen=True, order=True)
class Place:
    """A module of the pipeline: the part and the path in it."""

    part: str
    path: str


def module_names(pipe: Any) -> dict[str, Place]:
    """Every module with weights of the pipeline's parts, by each of its spellings.

    Raises `UserError` where two modules share a spelling, which would make a name mean two things.
    """
    found: dict[str, Place] = {}
    for part in KOHYA:
        network = getattr(pipe, part, None)
        if network is None:
            continue
        for path, module in network.named_modules():
            if not isinstance(getattr(module, "weight", None), nn.Parameter):
                continue
            place = Place(part, path)
            for name in _spellings(part, path, network):
                if found.setdefault(name, place) != place:
                    raise UserError(f"two modules of the model are spelled {name} in LoRA files")
    return found


def _spellings(part: str, path: str, network: Any) -> Iterator[str]:
    paths = {path}
    if part == "unet":
        paths |= set(_sgm(path, network))
        yield path  # raw files of diffusers' and peft's UNets name no part
        yield f"base_model.model.{path}"
    else:
        # transformers 5 dropped this step of the path
        bare = path.removeprefix("text_model.")
        paths |= {bare, f"text_model.{bare}"}
    for each in paths:
        yield f"{part}.{each}"
        for beginning in KOHYA[part]:
            yield beginning + each.replace(".", "_")
    for new, old in ((new, old) for old, new in PROCESSORS.items() if path.endswith(f".{new}")):
        older = path.removesuffix(new) + old
        yield older
        yield f"{part}.{older}"


def _sgm(path: str, network: Any) -> Iterator[str]:
    """The path of a UNet's module in Stability's own code, as checkpoints in one file have it."""
    for ours, theirs in ENDS.items():
        if path == ours:
            yield theirs
    steps = path.split(".")
    blocks, layers = len(network.down_blocks), _layers(network)
    if steps[0] == "mid_block" and len(steps) >= 3:
        number = {"attentions": 1, "resnets": 2 * int(steps[2])}[steps[1]]
        yield ".".join([f"middle_block.{number}", *_inner(steps[1], steps[3:])])
    if steps[0] not in ("down_blocks", "up_blocks") or len(steps) < 4:
        return
    block, kind, layer, inner = int(steps[1]), steps[2], int(steps[3]), steps[4:]
    if steps[0] == "down_blocks":
        if kind == "downsamplers":
            yield f"input_blocks.{(block + 1) * (layers + 1)}.0.op"
            return
        number, side = 1 + block * (layers + 1) + layer, "input_blocks"
    else:
        has_attention = hasattr(network.up_blocks[block], "attentions")
        if kind == "upsamplers":
            last = block * (layers + 1) + layers
            yield f"output_blocks.{last}.{2 if has_attention else 1}.conv"
            return
        number, side = block * (layers + 1) + layer, "output_blocks"
    if block < blocks and kind in ("resnets", "attentions"):
        place = 0 if kind == "resnets" else 1
        yield ".".join([f"{side}.{number}.{place}", *_inner(kind, inner)])


def _inner(kind: str, steps: list[str]) -> list[str]:
    """The path within a block: residual blocks have names of their own, transformers do not."""
    if kind == "resnets" and steps:
        return [RESNET.get(steps[0], steps[0]), *steps[1:]]
    return steps


def _layers(network: Any) -> int:
    """Residual blocks in each block on the way down; one more stands on the way up."""
    return len(network.down_blocks[0].resnets)


def part_of(name: str) -> str:
    """The part of a pipeline that a module of a LoRA file belongs to, by its spelling alone."""
    for part, beginnings in reversed(KOHYA.items()):
        if name.startswith((f"{part}.", *beginnings)):
            return part
    return "unet"  # raw files of UNets name no part


def cut(name: str, suffixes: Mapping[str, str]) -> tuple[str, str] | None:
    """A tensor's name as the name of its module and what of the module it is: the value of the
    longest of `suffixes` that it ends with. None where it ends with none.
    """
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffixes[suffix]
    return None
