"""LoRA files merged into a pipeline: W' = W + the sum over files of strength times change, in
float32, cast once at the end.

No adapter layer stays in the model, so methods see plain layers whose weights are those that act.
Merging in half precision would lose changes below 2^-11 of the weight. The order of files does not
matter: they are summed in the order of their digests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.base.errors import UserError
from bench.diffusion.lora.file import LoraFile
from bench.diffusion.lora.kinds import REFUSED, SUFFIXES, Adapter
from bench.diffusion.lora.names import Place, cut, module_names

WIDTHS = {768: "SD 1", 1024: "SD 2", 2048: "SD XL"}  # of the text that cross-attention reads


@dataclass(frozen=True)
class Strength:
    """How strongly a file acts on the UNet and on the text encoders; 1 is as it was trained."""

    unet: float = 1.0
    text: float = 1.0

    def of(self, place: Place) -> float:
        return self.unet if place.part == "unet" else self.text


@dataclass
class _Change:
    weight: Tensor
    bias: Tensor | None = None


@dataclass
class _Resolved:
    """A file's adapters by the module that they change."""

    file: LoraFile
    adapters: dict[Place, Adapter] = field(default_factory=dict)


def merge(pipe: Any, given: Sequence[tuple[LoraFile, Strength]]) -> None:
    """Change the weights of a pipeline's UNet and text encoders in place.

    The same file twice is one with both strengths added; a strength of 0 leaves every bit as it
    was. Raises `UserError` for a file that does not belong to the model, that names a module twice,
    leaves a tensor unused, is incomplete, of a kind that is not supported, or changes nothing.
    """
    names = module_names(pipe)
    resolved = [(resolve(file, names, pipe), strength) for file, strength in given]
    for one, _ in resolved:
        _refuse_idle(pipe, one)
    together = _summed(resolved)
    for place in sorted({place for one, _ in together for place in one.adapters}):
        module = pipe_module(pipe, place)
        acting = [
            (one.adapters[place], strength.of(place))
            for one, strength in together
            if place in one.adapters and strength.of(place)
        ]
        if acting:
            _change(module, acting)


def resolve(file: LoraFile, names: Mapping[str, Place], pipe: Any) -> _Resolved:
    """A file's tensors, each used exactly once, by the module that they belong to."""
    found = _Resolved(file)
    spelled: dict[Place, str] = {}
    strangers: list[str] = []
    for name, tensor in file.tensors.items():
        module, what = module_of(file, name)
        place = names.get(module)
        if place is None:
            strangers.append(module)
            continue
        if spelled.setdefault(place, module) != module:
            raise UserError(f"{file.path} names one module twice: {spelled[place]} and {module}")
        adapter = found.adapters.setdefault(place, Adapter(f"{file.path}: {module}"))
        if what in adapter.tensors:
            raise UserError(f"{file.path} has two tensors for {what} of {module}")
        adapter.tensors[what] = tensor
    if strangers:
        raise UserError(
            f"{file.path} was made for another model: {len(set(strangers))} of its modules, first"
            f" {strangers[0]}, are none of this one"
        )
    for place, adapter in found.adapters.items():
        adapter.settled = _stated_scale(file, place)
        _refuse_other_width(file, place, adapter, pipe_module(pipe, place))
    return found


def module_of(file: LoraFile, name: str) -> tuple[str, str]:
    """A tensor's name as the spelling of its module and what of it the tensor is.

    Raises `UserError` for a tensor of a kind that is not supported, or that nobody knows.
    """
    for suffix, kind in REFUSED.items():
        if name.endswith(suffix):
            raise UserError(f"{file.path}: {kind} is not supported ({name})")
    parts = cut(name, SUFFIXES)
    if parts is None:
        raise UserError(f"{file.path}: nobody knows what the tensor {name} is")
    return parts


def check(pipe: Any, file: LoraFile) -> None:
    """Raises `UserError` for a file that could not be merged into a pipeline, as `merge` does;
    every one of its modules is looked at, and nothing is changed.
    """
    one = resolve(file, module_names(pipe), pipe)
    _refuse_idle(pipe, one)
    for _ in _changes(pipe, one):
        pass


def pipe_module(pipe: Any, place: Place) -> Any:
    """The module at a place."""
    return getattr(pipe, place.part).get_submodule(place.path)


def _stated_scale(file: LoraFile, place: Place) -> float | None:
    """alpha / r as peft's settings in the header say it for a module; None where they do not."""
    said = file.metadata
    rank = said.get(f"{place.part}.r")
    if rank is None:
        return None
    rank = _by_pattern(said.get(f"{place.part}.rank_pattern"), place.path, rank)
    alpha = said.get(f"{place.part}.lora_alpha", rank)
    alpha = _by_pattern(said.get(f"{place.part}.alpha_pattern"), place.path, alpha)
    try:
        root = bool(said.get(f"{place.part}.use_rslora"))
        return float(alpha) / (float(rank) ** 0.5 if root else float(rank))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{file.path} states r = {rank!r} and lora_alpha = {alpha!r}") from error


def _by_pattern(patterns: Any, path: str, default: Any) -> Any:
    """The value of the first pattern that is the path or its end, as peft matches it."""
    for pattern, value in (patterns or {}).items() if isinstance(patterns, dict) else ():
        if path == pattern or path.endswith(f".{pattern}"):
            return value
    return default


def _refuse_other_width(file: LoraFile, place: Place, adapter: Adapter, module: Any) -> None:
    """A file for another Stable Diffusion is told by what its cross-attention reads."""
    down = adapter.tensors.get("down")
    if down is None or ".attn2.to_" not in place.path or down.ndim < 2:
        return
    there, here = int(down.shape[1]), int(module.weight.shape[1])
    if there != here and there in WIDTHS and not place.path.endswith((".to_q", ".to_out.0")):
        raise UserError(
            f"{file.path} was made for width {there} ({WIDTHS[there]}), the model has {here}"
        )


def _refuse_idle(pipe: Any, one: _Resolved) -> None:
    """Raises `UserError` for what cannot be merged, or changes no weight at strength 1."""
    for change in _changes(pipe, one):
        if bool(change.weight.any()) or (change.bias is not None and bool(change.bias.any())):
            return
    raise UserError(f"{one.file.path} changes nothing: every change of a weight is 0")


def _changes(pipe: Any, one: _Resolved) -> Iterator[_Change]:
    for place, adapter in one.adapters.items():
        yield _change_of(pipe_module(pipe, place), adapter)


def _change_of(module: Any, adapter: Adapter) -> _Change:
    weight = adapter.change(module.weight.detach().cpu())
    bias = adapter.bias_change()
    own = module.bias
    if bias is not None and (own is None or own.shape != bias.shape):
        raise UserError(f"{adapter.name} changes a bias that the model's module has not")
    return _Change(weight, bias)


def _summed(resolved: Sequence[tuple[_Resolved, Strength]]) -> list[tuple[_Resolved, Strength]]:
    """Equal files as one, in the order of their digests."""
    found: dict[str, tuple[_Resolved, Strength]] = {}
    for one, strength in resolved:
        _, before = found.get(one.file.digest, (one, Strength(0, 0)))
        total = Strength(before.unet + strength.unet, before.text + strength.text)
        found[one.file.digest] = (one, total)
    return [found[digest] for digest in sorted(found)]


@torch.no_grad()
def _change(module: Any, acting: Sequence[tuple[Adapter, float]]) -> None:
    weight: Tensor = module.weight
    total = weight.detach().cpu().float()
    bias = None if module.bias is None else module.bias.detach().cpu().float()
    changes = [(_change_of(module, adapter), strength) for adapter, strength in acting]
    for change, strength in changes:
        total = total + strength * change.weight
        if change.bias is not None and bias is not None:
            bias = bias + strength * change.bias
    weight.copy_(total.to(weight.dtype))
    if bias is not None and any(change.bias is not None for change, _ in changes):
        module.bias.copy_(bias.to(module.bias.dtype))
