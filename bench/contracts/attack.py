"""What an attack is: one class that drives the model through a `Target` and gives numbers, under a
declared threat model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from bench.base.errors import Unmeasurable, UserError
from bench.base.progress import Report, silent
from bench.contracts.metric import PerImage, PerSet
from bench.contracts.samples import SampleSet

if TYPE_CHECKING:
    from bench.contracts.method import Method, State
    from bench.diffusion.denoiser import Denoiser
    from bench.records.record import Shown
    from bench.suite.prompts import Prompt
    from bench.suite.suite import Suite

Threat = Literal["api", "weights"]
Item = TypeVar("Item")
Result = TypeVar("Result")
EXHIBITS = 10  # of one attack that a record keeps; more are dropped
Scores = Mapping[str, PerImage | PerSet | Unmeasurable]


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
    weights.

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
        if self.threat != "weights":
            raise UserError(
                "an attack of the threat model 'api' asked for the weights; declare threat ="
                " 'weights'"
            )
        return self.weights_()


class Attack(BaseModel):
    """Derive one class per file; typed fields are settings that a suite gives under
    `[attacks.NAME]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    threat: ClassVar[Threat] = "api"
    names: ClassVar[tuple[str, ...]] = ()  # of the scores it gives
    files: ClassVar[tuple[str, ...]] = ()  # of its fields, those that name files of the suite
    # of its scores: heading, decimals and meaning in tables; a score without them has no column
    shown: ClassVar[Mapping[str, Shown]] = {}
    # of its fields, the one that names the file of its calibration
    calibrated: ClassVar[str] = "calibration"
    # settings with which `bench check` tries it on its tiny suite, where defaults cannot work there
    trial: ClassVar[Mapping[str, Any]] = {}
    version: ClassVar[int] = 1

    def fits(self, suite: Suite) -> None:
        """Asked before any work.

        Raises `UserError` when these settings cannot work on the suite.
        """

    def asks(self, suite: Suite) -> Sequence[tuple[Sequence[Prompt], int]]:
        """Prompts and how many generations of each it will ask for at most, in the order in which
        it asks: for the plan of a run, and to make them ahead.
        """
        return ()

    def adaptive(self) -> bool:
        """Whether, with these settings, what it asks for depends on what it got before: then its
        images are not made ahead.
        """
        return False

    def run(self, target: Target) -> Scores:
        """All scores by name, `Unmeasurable` for those that this run has no number for.

        Raises it when there is nothing to attack.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it attacks: define run(self, target)"
        )

    def calibrate(self, target: Target) -> dict[str, Any]:
        """What must be measured once on the model without mitigation before the attack can run: the
        content of a JSON file (`bench calibrate`).
        """
        raise UserError(f"attack {type(self).__name__} has nothing to calibrate")


@contextmanager
def edited_weights(denoiser: Denoiser, method: Method, state: State) -> Iterator[Denoiser]:
    """The denoiser with those parameters that the method changes, and nothing else of the method;
    as before on exit, bit for bit.
    """
    import torch

    parts = [
        part
        for part in (denoiser.pipe.unet, denoiser.pipe.text_encoder, denoiser.pipe.vae)
        if part is not None
    ]
    before = [
        {name: value.detach().clone() for name, value in part.state_dict().items()}
        for part in parts
    ]
    with method.attach(denoiser.pipe, state):
        edited = [
            {
                name: value.detach().clone()
                for name, value in part.state_dict().items()
                if name in old and not torch.equal(value, old[name])
            }
            for part, old in zip(parts, before, strict=True)
        ]
    try:
        for part, changes in zip(parts, edited, strict=True):
            part.load_state_dict(changes, strict=False)
        yield denoiser
    finally:
        # all of it: an attacker may have changed more than the method did
        for part, old in zip(parts, before, strict=True):
            part.load_state_dict(old)
