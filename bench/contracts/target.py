"""What an attacker meets, and what an attack lets a reader see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from bench.base.errors import UserError
from bench.base.progress import Report, silent
from bench.contracts.samples import SampleSet

if TYPE_CHECKING:
    from bench.contracts.held import Finding, Known, Stage
    from bench.diffusion.denoiser import Denoiser
    from bench.suite.prompts import Prompt
    from bench.suite.suite import Suite

# api: may only generate; weights: holds the weights as edited; inputs: holds them too, and hands
# embeddings and initial latents to the served model, behind all doors of the method
Threat = Literal["api", "weights", "inputs"]
Item = TypeVar("Item")
Result = TypeVar("Result")
EXHIBITS = 10  # of one attack that a record keeps; more are dropped


@dataclass(frozen=True)
class Exhibit:
    """What an attack lets a reader see: some generations of a prompt, and the training picture that
    they betray.
    """

    prompt: Prompt
    caption: str
    pictures: Sequence[np.ndarray]  # uint8 [H, W, 3]
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Target:
    """What an attacker meets.

    It never sees the method: under `api` it may only generate, under `weights` it holds the edited
    weights, under `inputs` it holds them too and feeds the served model.

    `suite` gives candidate prompts and, for verification after the attack, reference images.
    `exhibits` goes into the record.
    """

    suite: Suite
    device: Any
    threat: Threat
    generate_: Callable[[Sequence[Prompt], int], SampleSet]
    weights_: Callable[[], AbstractContextManager[Denoiser]]
    report: Report = silent
    exhibits: list[Exhibit] = field(default_factory=list)
    map_: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]] = map
    find_: Callable[[Sequence[Stage], Sequence[Known], bool], list[Finding]] | None = None
    known_: Callable[[Sequence[Prompt], int, bool], list[Known]] | None = None
    base_: Callable[[], Denoiser] | None = None

    def base(self) -> Denoiser:
        """What the model was fine-tuned from, loaded when it is first asked for, with the suite's
        scheduler and steps. It counts its own evaluations, and is not to be changed.
        """
        if self.threat == "api":
            raise UserError(
                "an attack of the threat model 'api' asked for the base model; declare threat ="
                " 'weights' or 'inputs'"
            )
        if self.base_ is None:
            raise UserError("this target has no model that another was fine-tuned from")
        return self.base_()

    def known(self, prompts: Sequence[Prompt], images: int, memorized: bool) -> list[Known]:
        """The first training picture of each prompt as a picture that the attacker knows, with the
        seeds of `images` images.
        """
        if self.known_ is None:
            raise UserError("this target has no pictures for an attacker to know")
        return self.known_(prompts, images, memorized)

    def find(
        self, stages: Sequence[Stage], targets: Sequence[Known], mitigated: bool = True
    ) -> list[Finding]:
        """What the stages of an attack find about each picture, on the mitigated model or all of
        them on the base model; from the store where it has that already.
        """
        if self.threat == "api":
            raise UserError(
                "an attack of the threat model 'api' asked for the model; declare threat ="
                " 'weights' or 'inputs'"
            )
        if self.find_ is None:
            raise UserError("this target has no model for an attacker to hold")
        return self.find_(stages, targets, mitigated)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of every item, results in order as they come; by several processes at once
        where the run has them.

        The function and what it holds are then sent there: keep items small, and read pictures
        inside of it.
        """
        return self.map_(function, items)

    def generate(self, prompts: Sequence[Prompt], images: int) -> SampleSet:
        """`images` generations of every prompt by the mitigated model, from the store where it has
        them already.
        """
        return self.generate_(prompts, images)

    def weights(self) -> AbstractContextManager[Denoiser]:
        """The mitigated model's weights alone: what a method does by hooks, prompts, noise or
        guidance is not in them.
        """
        if self.threat == "api":
            raise UserError(
                "an attack of the threat model 'api' asked for the weights; declare threat ="
                " 'weights'"
            )
        return self.weights_()
