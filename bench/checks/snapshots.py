"""Snapshots of a pipeline, and how two of them differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.diffusion.families import parts_of

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


def furthest(first: Tensor, second: Tensor) -> str:
    """How two tensors differ, for a message: their shapes, or the largest difference."""
    if first.shape != second.shape:
        return f"shapes {tuple(first.shape)} and {tuple(second.shape)}"
    return f"up to {(first.double() - second.double()).abs().max().item():.3g}"


def first_difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """The first entry in which two snapshots, or two states of a method, differ, in words.

    None when they are equal bit for bit.
    """
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in after:
            return f"{key} is gone"
        if key not in before:
            return f"{key} is new"
        was, now = before[key], after[key]
        if isinstance(was, Tensor):
            if not torch.equal(was, now):
                return f"{key} differs by {furthest(was, now)}"
        elif was != now:
            return f"{key} changed"
    return None


def snapshot(pipe: Any) -> dict[str, Any]:
    """Everything of a pipeline that a method could leave changed, by its name in messages.

    These are weights, hooks, attention processors, modules with their attributes, and the
    scheduler.
    """
    found: dict[str, Any] = {
        "the scheduler's configuration": dict(pipe.scheduler.config),
        "the pipeline's attributes": sorted(vars(pipe)),
    }
    found |= _attributes(pipe.scheduler, "the scheduler")
    for part_name, part in parts_of(pipe).items():
        found |= {
            f"weight {part_name}.{name}": value.detach().clone()
            for name, value in part.state_dict().items()
        }
        found |= {
            f"requires_grad of {part_name}.{name}": value.requires_grad
            for name, value in part.named_parameters()
        }
        for name, module in part.named_modules():
            label = f"{part_name}.{name}".rstrip(".")
            for hooks in HOOKS:
                found[f"{hooks.strip('_').replace('_', ' ')} of {label}"] = [
                    id(hook) for hook in getattr(module, hooks).values()
                ]
            found[f"the class of {label}"] = type(module)
            found[f"the mode of {label}"] = module.training
            found |= _attributes(module, label)
            if hasattr(module, "processor"):
                found[f"the attention processor of {label}"] = id(module.processor)
                found |= _attributes(module.processor, f"the processor of {label}")
    return found


def _attributes(thing: Any, label: str) -> dict[str, Any]:
    """The names of an object's attributes, and the values of those that are plain or tensors."""
    values = {
        name: value
        for name, value in vars(thing).items()
        if isinstance(value, (bool, int, float, str, Tensor))
    }
    plain = {
        f"{name} of {label}": value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
    return plain | {f"the attributes of {label}": sorted(vars(thing))}
