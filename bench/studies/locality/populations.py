"""The five groups of embeddings whose numbers stand beside each other, since none of them means
anything alone.

same        ends of searches for one memorized picture, each from another beginning
different   ends of searches for as many other memorized pictures
clean       captions of clean prompts
control     ends of searches for one picture that the model was never trained on
noise       the first of `same`, again and again, looked at under other noise: how far two results
            differ that have the same embedding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.base.errors import UnknownName, UserError
from bench.base.foreign import read_table
from bench.base.spread import spread
from bench.contracts.held import Known
from bench.contracts.picture_attack import PictureAttack
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.request import HandedIn
from bench.running.experiment import Experiment
from bench.running.findings import known
from bench.suite.prompts import Prompt
from bench.suite.suite import Suite

NAMES = ("same", "different", "clean", "control", "noise")
SEARCHED = ("same", "different", "control")  # the populations that searches give
MEANING = {
    "same": "one memorized picture",
    "different": "other memorized pictures",
    "clean": "clean captions",
    "control": "one picture never trained on",
    "noise": "one trigger, other noise",
}


@dataclass(frozen=True)
class Member:
    """One embedding, float32 `[T, D]`, of a caption or picture `of`.

    start   where the search for it began; None for a caption
    noise   the number of the initial noise that it is looked at under
    restart and bank: of its search, the number and the loss at its beginning and end
    """

    of: Prompt
    embedding: np.ndarray
    start: np.ndarray | None = None
    noise: int = 0
    restart: int | None = None
    bank: tuple[float, float] | None = None

    def handed_in(self, denoiser: Denoiser) -> HandedIn:
        """The caption that brings this embedding along."""
        given = torch.from_numpy(self.embedding).to(denoiser.device, denoiser.dtype)
        return HandedIn(self.of.text, given)


@dataclass(frozen=True)
class Population:
    """Members, and the picture that functions of embeddings are compared around."""

    name: str
    members: tuple[Member, ...]
    around: Known

    @cached_property
    def ends(self) -> np.ndarray:
        """The embeddings, `[R, T, D]`."""
        return np.stack([member.embedding for member in self.members])

    @cached_property
    def starts(self) -> np.ndarray | None:
        """Where the searches began, `[R, T, D]`; None where none was made."""
        found = [member.start for member in self.members if member.start is not None]
        return np.stack(found) if len(found) == len(self.members) else None

    def tensor(self, denoiser: Denoiser, values: np.ndarray | None = None) -> Tensor:
        """The embeddings, or other values of their shape, as the model takes them."""
        given = self.ends if values is None else values
        return torch.from_numpy(given).to(denoiser.device, denoiser.dtype)


@dataclass(frozen=True)
class Subjects:
    """The pictures and captions that populations are made of."""

    picture: Known
    others: tuple[Known, ...]
    control: Known
    clean: tuple[Prompt, ...]


def pick_subjects(
    suite: Suite,
    experiment: Experiment,
    attack: PictureAttack,
    count: int,
    wanted: str,
    images: int,
) -> Subjects:
    """Pictures and captions of the suite, whose images have the seeds that `experiment` gives them.

    `wanted` is the id of the memorized prompt whose picture is searched for; by default the one
    that the labels call copied most often (the first of several). The others are evenly spread.

    Raises `UserError` where the suite lacks what a population needs.
    """
    attack.fits(suite)
    memorized, control = attack.attacked(suite)
    clean = suite.prompts("clean")
    if len(memorized) < 3 or len(clean) < 2:
        raise UserError(
            f"locality compares at least 3 memorized pictures and 2 clean captions, and suite"
            f" {suite.name} has {len(memorized)} (each with a control) and {len(clean)}"
        )
    one = _wanted(memorized, wanted) if wanted else _most_copied(suite, attack, memorized)
    others = spread([prompt for prompt in memorized if prompt.id != one.id], count)

    def as_known(prompts: Sequence[Prompt], trained: bool) -> list[Known]:
        return known(experiment, prompts, images, trained, 0)

    return Subjects(
        as_known([one], True)[0],
        tuple(as_known(others, True)),
        as_known(control[:1], False)[0],
        tuple(spread(clean, count)),
    )


def _wanted(memorized: Sequence[Prompt], wanted: str) -> Prompt:
    found = {prompt.id: prompt for prompt in memorized}
    if wanted not in found:
        raise UnknownName("memorized picture", wanted, list(found))
    return found[wanted]


def _most_copied(suite: Suite, attack: PictureAttack, memorized: Sequence[Prompt]) -> Prompt:
    if not attack.labels:
        return memorized[0]
    shares: dict[str, Any] = read_table(suite.path(attack.labels))["share_of_copies"]
    return max(memorized, key=lambda prompt: float(shares[prompt.id]))
