"""Weights between a model that was fine-tuned as a whole and its base: W_b + w (W - W_b).

It is to a whole fine-tune what the strength of a LoRA file is to the file. UNet and text encoders
move; the autoencoder, which fine-tuning leaves alone, stays the model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.base.errors import UserError
from bench.diffusion.families import parts_of


def learned_parts(pipe: Any) -> dict[str, Any]:
    """The networks of a pipeline that fine-tuning changes, by name: UNet and text encoders."""
    return {name: network for name, network in parts_of(pipe).items() if name != "vae"}


def blend(pipe: Any, base: Any, weight: float) -> None:
    """Change the weights of a pipeline in place to W_b + weight (W - W_b), in float32 and cast
    once; `base` stays as it is.

    At 1 every bit stays what it was, at 0 every bit is the base's. Raises `UserError` as
    `refuse_other_training` does.
    """
    refuse_other_training(pipe, base)
    if weight == 1:
        return
    for name, network in learned_parts(pipe).items():
        others = dict(getattr(base, name).named_parameters())
        with torch.no_grad():
            for key, value in network.named_parameters():
                value.copy_(_between(value, others[key], weight))


def refuse_other_training(pipe: Any, base: Any) -> None:
    """Raises `UserError` where a model and its base predict something else or learned another noise
    schedule: what lies between them is no model.
    """
    ours, theirs = (one.scheduler.config.get("prediction_type") for one in (pipe, base))
    if ours != theirs:
        raise UserError(
            f"there is nothing between the suite's model and its base: the model predicts {ours}"
            f" and the base {theirs}"
        )
    if not torch.equal(pipe.scheduler.alphas_cumprod, base.scheduler.alphas_cumprod):
        raise UserError(
            "there is nothing between the suite's model and its base: their noise schedules differ"
        )


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two networks have the same parameters, in every value."""
    ours, theirs = (dict(network.named_parameters()) for network in (one, other))
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def _between(model: Tensor, base: Tensor, weight: float) -> Tensor:
    if weight == 0:
        return base  # 0 * change + base would lose the sign of its zeros
    start = base.float()
    return start + weight * (model.float() - start)


def refuse_other_shapes(pipe: Any, base: Any, path: Path | str) -> None:
    """Raises `UserError` where UNet or text encoders of a model and its base, at `path`, have other
    parameters.
    """
    for part, network in learned_parts(pipe).items():
        if other := _first_other_shape(network, getattr(base, part, None)):
            raise UserError(
                f"{path} is no base of the suite's model: {part}.{other}; name what the model was"
                " fine-tuned from"
            )


def _first_other_shape(model: torch.nn.Module, base: torch.nn.Module | None) -> str:
    """Which parameter two networks do not have alike, in words; empty for none."""
    ours, theirs = (
        {name: tuple(value.shape) for name, value in network.named_parameters()} if network else {}
        for network in (model, base)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            here, there = (
                "x".join(map(str, shapes[name])) if name in shapes else "missing"
                for shapes in (ours, theirs)
            )
            return f"{name} is {there} there and {here} in the model"
    return ""
