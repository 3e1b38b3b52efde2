"""What the weight masks of a method look like and how far they agree (after Chavhan et al., arXiv
2406.18566): pure functions.

Three questions: how dense are the masks by layer and UNet call, do different prompts give the same
mask, and do masks change over the calls. `bench.studies.mask_study` runs it on a suite and writes
the files, `bench.studies.mask_plots` draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.errors import UserError
from bench.contracts.masked import MaskedMethod, MaskFunction, Report

if TYPE_CHECKING:
    from torch import Tensor

    from bench.diffusion.denoiser import Denoiser

ALL, UNION = "all", "union"  # the rows of tables that stand for all layers and for all calls
UNDEFINED = (
    "both masks are empty, and the IoU of two empty masks is undefined (do the parameters leave no"
    " candidates?)"
)
SINGLE = "there is a single call, and no next one to compare it with"
CHUNK = 1 << 20  # weights compared at once; also keeps counts exact in fp32

Row = dict[str, Any]


@dataclass(frozen=True)
class Overlap:
    """How many weights each pair of K masks has in common:

    `shared` int64 `[K, K]`, with the masks' sizes on the diagonal, and `by_chance` float64 `[K,
    K]`, expected of random masks of the same sizes. The overlaps of layers add up.
    """

    shared: np.ndarray
    by_chance: np.ndarray

    @classmethod
    def of(cls, masks: Tensor) -> Overlap:
        """Of bool masks `[K, ...]` of the same weights."""
        flat = masks.flatten(1)
        shared = np.zeros((len(flat), len(flat)), dtype=np.int64)
        for part in flat.split(CHUNK, dim=1):
            numbers = part.float()
            shared += (numbers @ numbers.T).cpu().numpy().astype(np.int64)
        sizes = shared.diagonal().astype(np.float64)
        return cls(shared, np.outer(sizes, sizes) / flat.shape[1])

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.shared + other.shared, self.by_chance + other.by_chance)

    def iou(self, first: int, second: int) -> float | None:
        """Intersection over union of two masks, None when both are empty."""
        return self._ratio(first, second, float(self.shared[first, second]))

    def chance_iou(self, first: int, second: int) -> float | None:
        """Expected intersection over expected union of two random masks that have the same number
        of weights in every layer.
        """
        return self._ratio(first, second, float(self.by_chance[first, second]))

    def _ratio(self, first: int, second: int, common: float) -> float | None:
        either = float(self.shared[first, first] + self.shared[second, second]) - common
        return common / either if either else None


@dataclass(frozen=True)
class MaskFacts:
    """One layer's figures, or of several layers added:

    `weights` in it; `candidates` and `masked` by call and then of the union, int64 `[calls + 1]`;
    overlaps of the masks of `calls` and of the united masks of `subsets` of prompts.
    """

    weights: int
    candidates: np.ndarray
    masked: np.ndarray
    calls: Overlap
    subsets: Overlap

    def __add__(self, other: MaskFacts) -> MaskFacts:
        return MaskFacts(
            self.weights + other.weights,
            self.candidates + other.candidates,
            self.masked + other.masked,
            self.calls + other.calls,
            self.subsets + other.subsets,
        )


@dataclass(frozen=True)
class MaskAnalysis:
    """The tables of one method on one list of prompts, and their summary, which holds only what
    JSON can.
    """

    density: list[Row]
    subsets: list[Row]
    calls: list[Row]
    summary: dict[str, Any]


def analyze_masks(
    denoiser: Denoiser,
    method: MaskedMethod,
    prompts: Sequence[str],
    subsets: Sequence[Sequence[int]],
    report: Report,
) -> MaskAnalysis:
    """Density and consecutive calls for the masks that `fit` makes of these prompts; agreement
    between the masks of subsets.

    The model is evaluated once for each prompt, however many subsets there are. `subsets` hold
    positions in `prompts`.
    """
    before, fitted_on = denoiser.rows, method.fitted_on(len(prompts))
    facts = mask_facts(method.mask_functions(denoiser, prompts, report), fitted_on, subsets, report)
    calls = len(facts[ALL].masked) - 1
    timesteps = [int(timestep) for timestep in denoiser.new_scheduler().timesteps[:calls]]
    density, between_subsets, between_calls = (
        density_table(facts, timesteps),
        subset_table(facts, subsets),
        call_table(facts, timesteps),
    )
    shared = [row["shared_prompts"] for row in between_subsets if row["layer"] == ALL]
    summary = {
        "fit_prompts": len(prompts),
        "fitted_on": len(fitted_on),
        "calls": calls,
        "subsets": {
            "count": len(subsets),
            "size": len(subsets[0]),
            "mean_shared_prompts": sum(shared) / len(shared),
        },
        "density": {row["layer"]: row["density"] for row in density if row["call"] == UNION},
        "iou_between_subsets": by_layer(between_subsets, list(facts)),
        "iou_between_consecutive_calls": by_layer(between_calls, list(facts)),
        "row_evaluations": denoiser.rows - before,
    }
    return MaskAnalysis(density, between_subsets, between_calls, summary)


def draw_subsets(available: int, count: int, size: int, seed: int) -> list[tuple[int, ...]]:
    """`count` different random subsets of `size` positions out of `available`, each sorted."""
    if count < 2:
        raise UserError(f"--subsets must be at least 2, to have something to compare, not {count}")
    if not 1 <= size <= available:
        raise UserError(
            f"--size must be between 1 and the number of fit prompts, {available}, not {size}"
        )
    if math.comb(available, size) < count:
        possible = math.comb(available, size)
        raise UserError(
            f"{available} fit prompts have only {possible} different subsets of {size}, not"
            f" {count}: choose another --size or --subsets"
        )
    random = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(sorted(int(i) for i in random.choice(available, size, replace=False)))] = None
    return list(found)


def mask_facts(
    functions: dict[str, MaskFunction],
    fitted_on: Sequence[int],
    subsets: Sequence[Sequence[int]],
    report: Report,
) -> dict[str, MaskFacts]:
    """Facts by layer, one layer at a time so that a large model's masks need not fit into memory
    together, and of `ALL`.
    """
    facts: dict[str, MaskFacts] = {}
    for done, (layer, masks_of) in enumerate(functions.items(), 1):
        facts[layer] = _layer_facts(masks_of, fitted_on, subsets)
        report("compare layers", done, len(functions))
    first, *others = facts.values()
    return facts | {ALL: sum(others, start=first)}


def _layer_facts(
    masks_of: MaskFunction, fitted_on: Sequence[int], subsets: Sequence[Sequence[int]]
) -> MaskFacts:
    import torch

    candidates, masked = masks_of(fitted_on)
    united = torch.stack([masks_of(subset)[1].any(0) for subset in subsets])
    return MaskFacts(
        masked[0].numel(),
        _sizes(candidates),
        _sizes(masked),
        Overlap.of(masked),
        Overlap.of(united),
    )


def _sizes(masks: Tensor) -> np.ndarray:
    """Weights in each of the masks `[calls, d, m]` and in their union, int64 `[calls + 1]`."""
    return np.array([int(mask.sum()) for mask in (*masks, masks.any(0))], dtype=np.int64)


def density_table(facts: dict[str, MaskFacts], timesteps: Sequence[int]) -> list[Row]:
    """By layer and call, and of the union of calls: candidates, masked weights, weights, and masked
    over weights.
    """
    times = [*zip(range(len(timesteps)), timesteps, strict=True), (UNION, None)]
    return [
        {
            "layer": layer,
            "call": call,
            "timestep": timestep,
            "candidates": int(fact.candidates[index]),
            "masked": int(fact.masked[index]),
            "weights": fact.weights,
            "density": int(fact.masked[index]) / fact.weights,
        }
        for layer, fact in facts.items()
        for index, (call, timestep) in enumerate(times)
    ]


def subset_table(facts: dict[str, MaskFacts], subsets: Sequence[Sequence[int]]) -> list[Row]:
    """By layer and pair of subsets: the prompts they share, the IoU of their masks and what random
    masks would have.
    """
    pairs = [
        (i, j, len({*subsets[i]} & {*subsets[j]})) for i, j in combinations(range(len(subsets)), 2)
    ]
    return [
        {"layer": layer, "first": first, "second": second, "shared_prompts": shared}
        | _iou_cells(fact.subsets, first, second)
        for layer, fact in facts.items()
        for first, second, shared in pairs
    ]


def call_table(facts: dict[str, MaskFacts], timesteps: Sequence[int]) -> list[Row]:
    """By layer and pair of consecutive calls: the IoU of their masks and what random masks would
    have.
    """
    return [
        {
            "layer": layer,
            "call": call,
            "next_call": after,
            "timestep": timesteps[call],
            "next_timestep": timesteps[after],
        }
        | _iou_cells(fact.calls, call, after)
        for layer, fact in facts.items()
        for call, after in pairwise(range(len(timesteps)))
    ]


def _iou_cells(overlap: Overlap, first: int, second: int) -> Row:
    iou = overlap.iou(first, second)
    return {
        "iou": iou,
        "chance_iou": overlap.chance_iou(first, second),
        "reason": UNDEFINED if iou is None else None,
    }


def by_layer(table: Sequence[Row], layers: Sequence[str]) -> dict[str, Row]:
    """Mean, least and largest IoU of every layer's pairs and the mean by chance; None with the
    reason where no pair has an IoU.
    """
    return {layer: _summary([row for row in table if row["layer"] == layer]) for layer in layers}


def _summary(pairs: Sequence[Row]) -> Row:
    defined = [row for row in pairs if row["iou"] is not None]
    counts = {"pairs": len(pairs), "undefined": len(pairs) - len(defined)}
    if not defined:
        return counts | {
            "mean": None,
            "min": None,
            "max": None,
            "chance": None,
            "reason": UNDEFINED if pairs else SINGLE,
        }
    values = [row["iou"] for row in defined]
    chance = float(np.mean([row["chance_iou"] for row in defined]))
    return counts | {
        "mean": float(np.mean(values)),
        "min": min(values),
        "max": max(values),
        "chance": chance,
    }
