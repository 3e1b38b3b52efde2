"""The weights that a method finds for one embedding, and how far those of a population agree.

A method is asked as it is for any list of fit prompts, here of one prompt that brings its embedding
along. What counts as found are the truth values in what it learns: neurons of NeMo, masked weights
of Wanda.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from bench.base.digests import digest_of
from bench.base.errors import UserError
from bench.base.parameters import configure
from bench.base.source import code_of
from bench.contracts.held import Arrays
from bench.contracts.method import FitData, Method
from bench.diffusion.denoiser import Denoiser
from bench.registry import registry
from bench.running.process_state import process_kept
from bench.studies.locality.kept import Kept, name_of
from bench.studies.locality.populations import Member, Population
from bench.studies.masks import ALL, Overlap, Row, by_layer

Masks = Mapping[str, np.ndarray]  # bool by layer
# What a method needs so that `fit` says the weights of its prompts.
SETTINGS: dict[str, dict[str, Any]] = {"nemo": {"mode": "permanent"}, "wanda": {"sparsity": 0.05}}


@dataclass(frozen=True)
class Finder:
    """A method that finds weights, and the clean captions that it may compare with."""

    name: str
    method: Method
    source: str | None
    clean: tuple[str, ...]

    @classmethod
    def resolve(cls, name: str, values: Mapping[str, Any], clean: Sequence[str]) -> Finder:
        """Raises `UserError` for a method that learns nothing of prompts, or whose noise cannot be
        changed.
        """
        entry = registry.find("method", name)
        given = SETTINGS.get(entry.name, {}) | dict(values)
        method = configure("method", entry.name, entry.load(), given)
        if "fit_prompts" not in method.needed() or "seed" not in type(method).model_fields:
            raise UserError(
                f"method {entry.name} finds no weights of a prompt under a noise that can be"
                " chosen (it must need fit_prompts and have a parameter seed); nemo and wanda do"
            )
        needed = tuple(clean) if "clean_prompts" in method.needed() else ()
        return cls(entry.name, method, entry.source, needed)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the model, the embedding and the noise."""
        module = type(self.method).__module__
        return {
            "method": self.name,
            "version": self.method.version,
            "parameters": self.method.model_dump(mode="json"),
            "code": code_of(module) if module.startswith("methods.") else None,
            "source": self.source,
            "clean": digest_of(list(self.clean)),
        }

    def threshold_known(self, kept: Kept, denoiser: Denoiser) -> Finder:
        """The finder with the threshold that its method would measure again for every prompt,
        where it measures one on clean captions.
        """
        if getattr(self.method, "threshold", 0.0) is not None:
            return self

        def measure(place: int) -> Arrays:
            state = self.method.fit(denoiser, FitData(clean_prompts=self.clean))
            return {"threshold": np.array(float(state["threshold"]))}

        found = kept.found(f"calibrate {self.name}", ["threshold"], measure)[0]["threshold"]
        method = self.method.model_copy(update={"threshold": float(found)})
        return Finder(self.name, method, self.source, self.clean)

    def find(self, denoiser: Denoiser, member: Member) -> dict[str, np.ndarray]:
        """The weights of one embedding, bool by layer; `member.noise` is added to the method's
        seed. Raises `UserError` where the method learned no truth values.
        """
        seed = getattr(self.method, "seed") + member.noise  # noqa: B009 (a field of some methods)
        method = self.method.model_copy(update={"seed": seed})
        data = FitData(fit_prompts=(member.handed_in(denoiser),), clean_prompts=self.clean)
        with process_kept(f"method {self.name}: fit"):
            state = method.fit(denoiser, data)
        found = {
            name: value.cpu().numpy() for name, value in state.items() if value.dtype == torch.bool
        }
        if not found:
            raise UserError(f"method {self.name} learned no set of weights (truth values by layer)")
        return found

    def removed(self, denoiser: Denoiser, masks: Masks) -> AbstractContextManager[None]:
        """A block in which the model lacks these weights, as the method takes them away."""
        state = {name: torch.from_numpy(mask).to(denoiser.device) for name, mask in masks.items()}
        return self.method.attach(denoiser.pipe, state)


def find_all(
    kept: Kept, finder: Finder, denoiser: Denoiser, population: Population
) -> list[dict[str, np.ndarray]]:
    """The weights of every member, kept by embedding and noise."""
    members = population.members
    names = [name_of(member.embedding, member.noise) for member in members]
    return kept.found(
        f"{finder.name} {population.name}",
        names,
        lambda place: finder.find(denoiser, members[place]),
    )


@dataclass(frozen=True)
class Agreement:
    """How far sets of weights agree: a row for each layer and pair (`iou` is None where both sets
    are empty), and by layer what that comes to. `sizes` are the mean numbers of weights in a set.
    """

    pairs: list[Row]
    layers: dict[str, Row]
    sizes: dict[str, float]
    empty: int  # sets without any weight


def agreement(sets: Sequence[Masks]) -> Agreement:
    """Of at least two sets of weights with the same layers."""
    overlaps = {
        _short(name): Overlap.of(torch.from_numpy(np.stack([masks[name] for masks in sets])))
        for name in sets[0]
    }
    first, *others = overlaps.values()
    overlaps[ALL] = sum(others, start=first)
    pairs = [
        {
            "layer": layer,
            "first": one,
            "second": two,
            "iou": overlap.iou(one, two),
            "chance_iou": overlap.chance_iou(one, two),
        }
        for layer, overlap in overlaps.items()
        for one, two in combinations(range(len(sets)), 2)
    ]
    counts = {layer: overlap.shared.diagonal() for layer, overlap in overlaps.items()}
    return Agreement(
        pairs,
        by_layer(pairs, list(overlaps)),
        {layer: float(count.mean()) for layer, count in counts.items()},
        int((counts[ALL] == 0).sum()),
    )


def _short(name: str) -> str:
    """The layer's module name without the word that a method puts before it."""
    return name.removeprefix("neurons.")
