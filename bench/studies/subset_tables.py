"""From what the models of subsets came to, to tables: held-out copies, similarity and alignment by
size of the subset (Chavhan et al., arXiv 2406.18566, figure 3), and how far pictures of different
models agree (figure 4). Pure functions.

Intervals are over prompts, those that hang together as one. The spread beside them, `std`, is over
the subsets of a size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bench.statistics.intervals import cluster_bootstrap, paired_difference
from bench.statistics.units import Design, Units
from bench.studies.masks import Row
from bench.studies.subset_models import NONE, RANDOM, Measured
from bench.suite.prompts import Prompt
from bench.suite.schema import Role

SCORES = ("copies", "sscd", "clip_clean", "copies_left_out", "sscd_left_out", "fid")
ONE_MODEL = "there is a single model of this size, and no other one to compare it with"
ONE_IMAGE = "there is a single image of each prompt, and no other seed to compare it with"
JUDGED: tuple[Role, ...] = ("memorized", "clean")
Designs = Mapping[Role, Design]  # how the prompts hang together on which models are judged
ALONE: Designs = MappingProxyType({})  # each prompt is a unit
Group = tuple[str, int | None]  # kind of the models, and size of their subsets


def groups_of(found: Iterable[Measured]) -> dict[Group, list[Measured]]:
    """The models of each kind and size, in the order in which they were judged."""
    groups: dict[Group, list[Measured]] = {}
    for model in found:
        groups.setdefault((model.kind, model.size), []).append(model)
    return groups


def model_rows(found: Sequence[Measured]) -> list[Row]:
    """One row for each model. What `none` has on the same left-out prompts stands beside a model's
    own, since every subset leaves out other prompts.
    """
    none = _none(found)
    return [
        {
            "kind": model.kind,
            "size": model.size,
            "subset": model.number,
            "copies": _mean(model, model.held_out, "copies"),
            "sscd": _mean(model, model.held_out, "similarity"),
            "clip_clean": _mean(model, tuple(model.clip_clean or ()), "clip_clean"),
            "left_out": len(model.left_out),
            "copies_left_out": _mean(model, model.left_out, "copies"),
            "sscd_left_out": _mean(model, model.left_out, "similarity"),
            "copies_left_out_none": _mean(none, model.left_out, "copies"),
            "sscd_left_out_none": _mean(none, model.left_out, "similarity"),
            "fid": model.fid,
            "fit_evaluations": model.fit_rows,
            "image_evaluations": model.image_rows,
        }
        for model in found
    ]


def size_rows(found: Sequence[Measured], designs: Designs = ALONE) -> list[Row]:
    """One row for each kind and size: mean, standard deviation, least and largest of every score
    over the subsets; and how copies and CLIP score differ from those of `none` and of random masks,
    prompt by prompt, with 95 % intervals (Bonett and Price for copies, which are shares).
    """
    groups, none = groups_of(found), _none(found)
    rows = []
    for (kind, size), models in groups.items():
        row: Row = {"kind": kind, "size": size, "subsets": len(models)}
        table = model_rows([none, *models])[1:]
        for score in SCORES:
            row |= _spread(score, [each[score] for each in table if each[score] is not None])
        control = groups.get((RANDOM, size)) if kind != RANDOM and size is not None else None
        others = {"none": [none] if kind != NONE else [], "random": control or []}
        for name, others_models in others.items():
            for score, by_prompt, design in (
                ("copies", _copies, designs.get("memorized")),
                ("clip_clean", _clip, designs.get("clean")),
            ):
                ours, theirs = (_by_prompt(each, by_prompt) for each in (models, others_models))
                share = score == "copies"
                row |= _difference(f"{score}_minus_{name}", ours, theirs, share, design)
        rows.append(row)
    return rows


def agreement_rows(found: Sequence[Measured], designs: Designs = ALONE) -> list[Row]:
    """One row for each kind and size: mean similarity of two pictures of held-out prompts by the
    suite's copy descriptor, with 95 % intervals.

    `models`: the same prompt and seed, different subsets. `seeds`: the same prompt and model,
    different seeds. `none`: the same prompt and seed, against the model without mitigation.
    `models_minus_none` is above zero where models of different subsets are more alike than each is
    to the model without mitigation, so where they change pictures in the same way.
    """
    none = _none(found)
    design = designs.get("memorized", Design())
    units = design.units([prompt.id for prompt in none.held_out])
    rows = []
    for (kind, size), models in groups_of(found).items():
        stack = np.stack([model.descriptors for model in models])
        of_models, reason = between_models(stack), ""
        if of_models is None and size is not None:
            reason = ONE_MODEL
        if (of_seeds := between_seeds(stack)) is None:
            reason = "; ".join(filter(None, (reason, ONE_IMAGE)))
        to_none = None if kind == NONE else against(stack, none.descriptors)
        closer = None if of_models is None or to_none is None else of_models - to_none
        rows.append(
            {"kind": kind, "size": size, "subsets": len(models)}
            | _with_interval("models", of_models, units)
            | _with_interval("seeds", of_seeds, units)
            | _with_interval("none", to_none, units)
            | _with_interval("models_minus_none", closer, units)
            | {"reason": reason or None}
        )
    return rows


def between_models(descriptors: np.ndarray) -> np.ndarray | None:
    """From unit vectors `[models, prompts, images, d]`, by prompt the mean similarity of all pairs
    of models at the same seed, `[prompts]`. None for a single model.
    """
    pairs = _pairs(descriptors, 0)
    return None if pairs is None else pairs.mean(1)


def between_seeds(descriptors: np.ndarray) -> np.ndarray | None:
    """The same of all pairs of images of one prompt and model, `[prompts]`. None for a single
    image.
    """
    pairs = _pairs(descriptors, 2)
    return None if pairs is None else pairs.mean(0)


def against(descriptors: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By prompt the mean similarity to the pictures `[prompts, images, d]` of another model at the
    same seed, `[prompts]`.
    """
    products = np.einsum("mpid,pid->mpi", _wide(descriptors), _wide(other))
    return np.asarray(products.mean((0, 2)))


def _pairs(descriptors: np.ndarray, axis: int) -> np.ndarray | None:
    """The mean similarity of all pairs along an axis, which is gone from the result."""
    count = descriptors.shape[axis]
    if count < 2:
        return None
    wide = _wide(descriptors)
    # The square of a sum holds every pair twice, and each vector with itself.
    both = np.square(wide.sum(axis)).sum(-1) - np.square(wide).sum(-1).sum(axis)
    return np.asarray(both / (count * (count - 1)))


def _wide(descriptors: np.ndarray) -> np.ndarray:
    return np.asarray(descriptors, dtype=np.float64)


def _none(found: Sequence[Measured]) -> Measured:
    return next(model for model in found if model.kind == NONE)


def _mean(model: Measured, prompts: Sequence[Prompt], what: str) -> float | None:
    """Over the images of those prompts that have a training picture; None where none has."""
    by_prompt = getattr(model, what)
    rows = [by_prompt[prompt] for prompt in prompts if prompt in by_prompt]
    return float(np.mean(rows)) if rows else None


def _spread(name: str, values: Sequence[float]) -> Row:
    several = len(values) > 1
    return {
        name: float(np.mean(values)) if values else None,
        f"{name}_std": float(np.std(values, ddof=1)) if several else None,
        f"{name}_min": min(values, default=None),
        f"{name}_max": max(values, default=None),
    }


def _copies(model: Measured) -> dict[str, float]:
    held_out = [prompt for prompt in model.held_out if prompt in model.copies]
    return {prompt.id: float(model.copies[prompt].mean()) for prompt in held_out}


def _clip(model: Measured) -> dict[str, float]:
    return {prompt.id: float(row.mean()) for prompt, row in (model.clip_clean or {}).items()}


def _by_prompt(
    models: Sequence[Measured], values: Callable[[Measured], Mapping[str, float]]
) -> dict[str, float]:
    """The mean over models by prompt; empty without a model, and where one has no values."""
    found = [values(model) for model in models]
    if not found or not all(found):
        return {}
    return {prompt: float(np.mean([each[prompt] for each in found])) for prompt in found[0]}


def _difference(
    name: str,
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    share: bool,
    design: Design | None,
) -> Row:
    """The mean of `ours` less `theirs`, prompt by prompt, with its 95 % interval where there are at
    least two prompts.
    """
    shared = [prompt for prompt in ours if prompt in theirs]
    value = float(np.mean([ours[prompt] - theirs[prompt] for prompt in shared])) if shared else None
    found = paired_difference(dict(ours), dict(theirs), share=share, design=design)
    _, low, high = found or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _with_interval(
    name: str, by_prompt: np.ndarray | None, units: Units | None = None
) -> dict[str, Any]:
    """The mean over prompts, and its 95 % interval where there are at least two units of them."""
    if by_prompt is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    enough = (len(units.strata) if units else len(by_prompt)) > 1
    low, high = cluster_bootstrap(by_prompt[:, None], units=units) if enough else (None, None)
    return {name: float(by_prompt.mean()), f"{name}_low": low, f"{name}_high": high}
