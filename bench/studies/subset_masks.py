"""Masks of many subsets of prompts, by size of the subset: how dense they are and how far they
agree, at every UNet call and layer (Chavhan et al., arXiv 2406.18566, figures 1 and 2).

Pure functions of mask functions, like `bench.studies.masks`, whose overlaps they use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bench.base.errors import UserError
from bench.base.progress import Report
from bench.contracts.masked import MaskFunction
from bench.studies.masks import ALL, UNDEFINED, UNION, Overlap, Row, draw_subsets

Subset = tuple[int, ...]  # positions of prompts in the list of the role fit, in ascending order
Subsets = Mapping[int, Sequence[Subset]]  # by size

TENS, FEW = (10, 20, 30, 40, 50), (4, 8, 12, 16)
ONE_SUBSET = "there is a single subset of this size, and no other one to compare it with"


def default_sizes(available: int) -> list[int]:
    """The paper's sizes, 10 to 50, where there are so many fit prompts; else 4 to 16 as far as they
    go.

    Raises `UserError` for fewer than four fit prompts.
    """
    sizes = TENS if available >= max(TENS) else FEW
    if available < min(FEW):
        raise UserError(
            f"the suite has only {available} fit prompts: say with --sizes how many of them a"
            " subset has"
        )
    return [size for size in sizes if size <= available]


def draw_by_size(
    available: int, sizes: Sequence[int], count: int, seed: int
) -> dict[int, list[Subset]]:
    """By size in ascending order, `count` different random subsets, or all where there are not so
    many.

    Subsets stand in a fixed order, so that nothing hangs on the order of drawing. Raises
    `UserError` for sizes that the prompts do not allow, and for fewer than two subsets.
    """
    if count < 2:
        raise UserError(f"--subsets must be at least 2, to have something to compare, not {count}")
    for size in sizes:
        if not 1 <= size <= available:
            raise UserError(
                f"--sizes must lie between 1 and the number of fit prompts, {available}, not {size}"
            )
    return {size: _drawn(available, size, count, seed) for size in sorted(set(sizes))}


def _drawn(available: int, size: int, count: int, seed: int) -> list[Subset]:
    if size == available:
        return [tuple(range(available))]
    # Two at least: there are as many subsets of one prompt as prompts.
    possible = min(count, math.comb(available, size))
    return sorted(draw_subsets(available, possible, size, seed))


@dataclass(frozen=True)
class SizeFacts:
    """The masks of all subsets of one size in one layer, or in several layers added: the weights
    there, and the overlaps at every call and then of the unions of calls.
    """

    weights: int
    overlaps: tuple[Overlap, ...]

    def __add__(self, other: SizeFacts) -> SizeFacts:
        added = zip(self.overlaps, other.overlaps, strict=True)
        return SizeFacts(self.weights + other.weights, tuple(a + b for a, b in added))


def size_facts(
    functions: Mapping[str, MaskFunction], subsets: Subsets, report: Report
) -> dict[int, dict[str, SizeFacts]]:
    """Facts by size and layer, and of `ALL` layers. The masks of one layer and size are in memory
    at a time.
    """
    found: dict[int, dict[str, SizeFacts]] = {size: {} for size in subsets}
    for done, (layer, masks_of) in enumerate(functions.items(), 1):
        for size, drawn in subsets.items():
            found[size][layer] = _facts(masks_of, drawn)
        report("compare layers", done, len(functions))
    for layers in found.values():
        first, *others = layers.values()
        layers[ALL] = sum(others, start=first)
    return found


def _facts(masks_of: MaskFunction, drawn: Sequence[Subset]) -> SizeFacts:
    import torch

    masks = torch.stack([masks_of(subset)[1] for subset in drawn])  # [subsets, calls, d, m]
    by_call = [Overlap.of(masks[:, call]) for call in range(masks.shape[1])]
    return SizeFacts(masks[0, 0].numel(), (*by_call, Overlap.of(masks.any(1))))


def call_rows(facts: Mapping[int, Mapping[str, SizeFacts]], timesteps: Sequence[int]) -> list[Row]:
    """By size, layer and call, and of the union of calls: density of the subsets' masks, and the
    IoU of their pairs beside what random masks of the same sizes would have.
    """
    times = [*zip(range(len(timesteps)), timesteps, strict=True), (UNION, None)]
    return [
        {"size": size, "layer": layer, "call": call, "timestep": timestep, "weights": fact.weights}
        | _density_cells(overlap, fact.weights)
        | _iou_cells(overlap)
        for size, layers in facts.items()
        for layer, fact in layers.items()
        for (call, timestep), overlap in zip(times, fact.overlaps, strict=True)
    ]


def _density_cells(overlap: Overlap, weights: int) -> Row:
    shares = overlap.shared.diagonal() / weights
    return {
        "subsets": len(shares),
        "density_mean": float(shares.mean()),
        "density_min": float(shares.min()),
        "density_max": float(shares.max()),
    }


def _iou_cells(overlap: Overlap) -> Row:
    pairs = list(combinations(range(len(overlap.shared)), 2))
    values = [overlap.iou(*pair) for pair in pairs]
    defined = [value for value in values if value is not None]
    by_chance = [value for pair in pairs if (value := overlap.chance_iou(*pair)) is not None]
    reason = None if defined else UNDEFINED if pairs else ONE_SUBSET
    return {
        "pairs": len(pairs),
        "iou_mean": float(np.mean(defined)) if defined else None,
        "iou_min": min(defined, default=None),
        "iou_max": max(defined, default=None),
        "chance_iou": float(np.mean(by_chance)) if by_chance else None,
        "reason": reason,
    }


def pair_rows(facts: Mapping[int, Mapping[str, SizeFacts]], subsets: Subsets) -> list[Row]:
    """By size, layer and pair of subsets: the prompts they share, and the IoU of their masks united
    over calls. Empty where no size has two subsets.
    """
    return [
        {
            "size": size,
            "layer": layer,
            "first": first,
            "second": second,
            "shared_prompts": len({*subsets[size][first]} & {*subsets[size][second]}),
            "iou": fact.overlaps[-1].iou(first, second),
            "chance_iou": fact.overlaps[-1].chance_iou(first, second),
        }
        for size, layers in facts.items()
        for layer, fact in layers.items()
        for first, second in combinations(range(len(subsets[size])), 2)
    ]


def shared_prompts(drawn: Sequence[Subset]) -> float | None:
    """How many prompts two subsets share on average; None where there is one."""
    pairs = list(combinations(drawn, 2))
    return float(np.mean([len({*a} & {*b}) for a, b in pairs])) if pairs else None
