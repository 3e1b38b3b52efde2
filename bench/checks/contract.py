"""What every contract check uses: verdicts, the subject, snapshots of models, and guards against
hidden effects.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bench.registry.registry import Entry

Verdict = Literal["kept", "broken", "skipped"]


class Broken(Exception):
    """A contract that does not hold: what was found and what to change."""

    def __init__(self, difference: str, advice: str) -> None:
        super().__init__(f"{difference}; {advice}")


class NotApplicable(Exception):
    """A contract that says nothing about this class, with the reason."""


@dataclass(frozen=True)
class Result:
    """One contract's outcome; `note` is the difference and the advice, or the reason for
    skipping.
    """

    contract: str
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """What is checked: a class, configured, with the folder of a tiny suite to try it on."""

    entry: Entry
    cls: type[Any]
    configured: Any
    values: dict[str, Any]
    folder: Path


Contract = Callable[[Subject], None]


@contextmanager
def network_refused() -> Iterator[list[str]]:
    """Refuse every connection and name look-up; yields the list of what was tried."""
    attempts: list[str] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        place = next((arg for arg in args if isinstance(arg, (str, tuple))), "the network")
        attempts.append(str(place))
        raise OSError("the network is closed during `bench check`")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket.socket, "connect_ex", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        yield attempts


@contextmanager
def random_state_untouched(doing: str) -> Iterator[None]:
    """Break the contract when the global generators of torch, NumPy or Python are elsewhere
    afterwards.
    """

    def states() -> dict[str, Any]:
        kind, keys, *rest = np.random.get_state(legacy=True)
        return {
            "torch": torch.get_rng_state().tolist(),
            "NumPy": (kind, np.asarray(keys).tolist(), rest),
            "Python": random.getstate(),
        }

    before = states()
    yield
    moved = [name for name, state in states().items() if state != before[name]]
    if moved:
        raise Broken(
            f"{doing} moved the global random state of {', '.join(moved)}",
            "draw from a generator of your own, seeded by a parameter",
        )


def furthest(one: Tensor, other: Tensor) -> str:
    """How two tensors differ, for a message."""
    if one.shape != other.shape:
        return f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
    return f"up to {(one.double() - other.double()).abs().max().item():.3g}"


def first_difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """The first entry in which two snapshots differ, in words; None when they are equal bit for
    bit.
    """
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in after:
            return f"{key} is gone"
        if key not in before:
            return f"{key} is new"
        one, other = before[key], after[key]
        if isinstance(one, Tensor):
            if not torch.equal(one, other):
                return f"{key} differs by {furthest(one, other)}"
        elif one != other:
            return f"{key} changed"
    return None


def snapshot(pipe: Any) -> dict[str, Any]:
    """Everything of a pipeline that a method could leave changed: weights, hooks, processors,
    modules and their attributes, scheduler.
    """
    found: dict[str, Any] = {
        "the scheduler's configuration": dict(pipe.scheduler.config),
        "the pipeline's attributes": sorted(vars(pipe)),
    }
    found |= _attributes(pipe.scheduler, "the scheduler")
    for part_name in ("unet", "text_encoder", "vae"):
        part = getattr(pipe, part_name)
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
            for hooks in (
                "_forward_pre_hooks",
                "_forward_hooks",
                "_backward_hooks",
                "_backward_pre_hooks",
            ):
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
