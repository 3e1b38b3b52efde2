"""A LoRA file that acts at weight 1 as another one does at a smaller weight, so that the weight
travels with the file.

The scale of factors is changed where a file states it, in its alphas or in peft's entry of the
header, and no factor is touched. Where nothing states one, one factor of each product is
multiplied; changes that are no product are multiplied as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bench.base.errors import UserError, visible
from bench.diffusion.lora.file import LoraFile
from bench.diffusion.lora.header import ALPHA, DIFFERS, NEEDED_OF_PEFT, kept_header
from bench.diffusion.lora.kinds import SUFFIXES, has_alpha
from bench.diffusion.lora.merge import Strength, module_of
from bench.diffusion.lora.names import KOHYA, cut, part_of
from bench.suite.lora_files import PEFT, settings_named

WHOLE = ("diff", "bias")  # added as they are
FIRST_FACTORS = ("up", "w1_a", "k_w1", "k_w1_a")  # of a product; the first that is there
LENGTHS = ("dora", "dora_rows")
Scale = Literal["header", "alpha", "none"]  # where the scale of a product is stated


@dataclass
class _Module:
    """The tensors of one module by what they are, and their names in the file."""

    part: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def is_bound(names: Iterable[str], strength: Strength) -> bool:
    """Whether no file can say a strength of a file with tensors of these names: where it sets
    lengths of weights (DoRA), which no alpha weakens, of a part that neither stays as it is nor is
    left out.
    """
    return any(
        (parts := cut(name, SUFFIXES))
        and parts[1] in LENGTHS
        and _weight_of(part_of(parts[0]), strength) not in (0, 1)
        for name in names
    )


def rescaled(
    file: LoraFile, strength: Strength, strip: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a file that is, merged at 1, what this one is merged at a
    strength. A part with strength 0 is left out, one with 1 stays bit for bit. `strip` as in
    `kept_header`; of peft's entry `NEEDED_OF_PEFT` stays.

    Raises `UserError` where nothing is left, for a tensor that is not known, and for a DoRA, whose
    change at another weight depends on the weights of the model.
    """
    if is_bound(file.tensors, strength):
        raise UserError(
            f"{file.path} is a DoRA, whose change at another weight depends on the weights of the"
            " model: no alpha says it; publish it with the weight to use it at"
        )
    tensors: dict[str, Tensor] = {}
    weights: set[float] = set()  # of what is left
    for one in _modules(file).values():
        weight = _weight_of(one.part, strength)
        if weight:
            scale = _scale_of(file, one)
            changed = one.tensors if weight == 1 else _scaled(one.tensors, weight, scale)
            tensors |= {name: changed[what] for what, name in one.names.items()}
            weights.add(weight)
    if not tensors:
        raise UserError(f"with these weights nothing of {file.path} is left")
    header = kept_header(file.header, strip)
    if ALPHA in header:
        header[ALPHA] = _times(header[ALPHA], weights)
    said = settings_named(file.metadata, NEEDED_OF_PEFT) if strip else file.metadata
    if said:  # not sorted: of patterns the first that matches a module counts
        header[PEFT] = json.dumps(_peft_scaled(file, said, strength))
    return {name: tensors[name] for name in file.tensors if name in tensors}, header


def _modules(file: LoraFile) -> dict[str, _Module]:
    found: dict[str, _Module] = {}
    for name, tensor in file.tensors.items():
        spelled, what = module_of(file, name)
        one = found.setdefault(spelled, _Module(part_of(spelled)))
        if what in one.tensors:
            raise UserError(f"{file.path} has two tensors for {what} of {visible(spelled)}")
        one.tensors[what], one.names[what] = tensor, name
    return found


def _scale_of(file: LoraFile, one: _Module) -> Scale:
    """Where the scale of a module's product is stated."""
    if file.metadata.get(f"{one.part}.r") is not None:  # then alphas among the tensors do not count
        return "none" if file.metadata.get(f"{one.part}.lora_alpha") is None else "header"
    return "alpha" if has_alpha(one.tensors) else "none"


def _scaled(given: Mapping[str, Tensor], weight: float, scale: Scale) -> dict[str, Tensor]:
    """The tensors of one module whose changes are `weight` times as large."""
    changed = dict(given)
    for what in WHOLE:
        if what in given:
            changed[what] = _product(given[what], weight)
    factor = next((what for what in FIRST_FACTORS if what in given), None)
    if scale == "alpha":
        changed["alpha"] = given["alpha"].float() * weight
    elif scale == "none" and factor:
        changed[factor] = _product(given[factor], weight)
    return changed


def _product(tensor: Tensor, weight: float) -> Tensor:
    """In the tensor's own type where that holds it, else in float32."""
    wide = tensor.float() * weight
    narrow = wide.to(tensor.dtype)
    return narrow if torch.equal(narrow.float(), wide) else wide


def _weight_of(part: str, strength: Strength) -> float:
    return strength.unet if part == "unet" else strength.text


def _peft_scaled(file: LoraFile, given: Mapping[str, Any], strength: Strength) -> dict[str, Any]:
    """Settings of peft's header, with other alphas. A part that states ranks without an alpha has
    another alpha for every rank: it stays, and the factors are changed.
    """
    said = dict(given)
    for part in KOHYA:
        alpha, patterns = said.get(f"{part}.lora_alpha"), said.get(f"{part}.alpha_pattern")
        weight = _weight_of(part, strength)
        if said.get(f"{part}.r") is None or alpha is None or weight in (0, 1):
            continue
        try:
            said[f"{part}.lora_alpha"] = float(alpha) * weight
            if isinstance(patterns, dict):
                said[f"{part}.alpha_pattern"] = {
                    name: float(value) * weight for name, value in patterns.items()
                }
        except (TypeError, ValueError) as error:
            raise UserError(f"{file.path} states lora_alpha = {alpha!r}"[:200]) from error
    return said


def _times(alpha: str, weights: Collection[float]) -> str:
    """The alpha that a header states for all modules, when they have been multiplied with these
    weights; what is no number stays.
    """
    if len(weights) != 1:
        return DIFFERS
    try:
        return f"{float(alpha) * next(iter(weights)):g}"
    except ValueError:
        return alpha
