"""What an attack is: one class that drives the model through a `Target` and gives numbers, under a
declared threat model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bench.base.errors import Unmeasurable, UserError
from bench.contracts.metric import OfTables, PerImage, PerSet
from bench.contracts.target import Target, Threat
from bench.diffusion.families import FAMILIES, Family, parts_of

if TYPE_CHECKING:
    from bench.contracts.method import Method, State
    from bench.diffusion.denoiser import Denoiser
    from bench.records.record import Shown
    from bench.suite.prompts import Prompt
    from bench.suite.schema import Role
    from bench.suite.suite import Suite

Scores = Mapping[str, PerImage | PerSet | OfTables | Unmeasurable]


class Attack(BaseModel):
    """Derive one class per file; typed fields are settings that a suite gives under
    `[attacks.NAME]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    threat: ClassVar[Threat] = "api"
    # whether it cannot do without what the model was fine-tuned from (`target.base`)
    needs_base: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = ()  # of the scores it gives
    files: ClassVar[tuple[str, ...]] = ()  # of its fields, those that name files of the suite
    # of its scores: heading, decimals and meaning in tables; a score without them has no column
    shown: ClassVar[Mapping[str, Shown]] = {}
    # of its fields, the one that names the file of its calibration
    calibrated: ClassVar[str] = "calibration"
    # settings with which `bench check` tries it on its tiny suite, where defaults cannot work there
    trial: ClassVar[Mapping[str, Any]] = {}
    version: ClassVar[int] = 1
    # models that it was made for and tried on, where `works_on` assumes too little
    families: ClassVar[tuple[Family, ...]] = ()
    # whether another generation of the same prompts finds something else; else it is asked once
    # however many generations a run has
    anew: ClassVar[bool] = True
    # whether it works where prompts are read in several chunks ([model] chunks): not where it takes
    # the places of an embedding for the tokens of one text
    in_chunks: ClassVar[bool] = True

    def works_on(self) -> tuple[Family, ...]:
        """The families of models that it works on: all of them where it may only generate, and
        Stable Diffusion 1 and 2 where it reaches into the model, unless it declares others.
        """
        return self.families or (FAMILIES if self.threat == "api" else ("sd",))

    def role_of(self, name: str) -> Role:
        """The role whose prompts a score is of."""
        role: Role = getattr(self, "role", "memorized")
        return role

    def is_of_set(self, name: str) -> bool:
        """Whether a score is of a whole set (`PerSet`, `OfTables`), so that it has no values by
        prompt.
        """
        return False

    def values_a_prompt(self, name: str) -> int:
        """How many values each prompt has of a score, in one generation."""
        return int(getattr(self, "images", 1))

    def may_be_null(self, name: str) -> bool:
        """Whether a run may have no number for a score that others have."""
        return False

    def fits(self, suite: Suite) -> None:
        """Asked before any work.

        Raises `UserError` when these settings cannot work on the suite.
        """

    def asks(self, suite: Suite) -> Sequence[tuple[Sequence[Prompt], int]]:
        """Prompts and how many generations of each it will ask for at most, in the order in which
        it asks: for the plan of a run, and to make them ahead.
        """
        return ()

    def searched(self, suite: Suite) -> tuple[int, int]:
        """How many pictures it works on with a model in its hands, and the row evaluations that
        this takes in one generation when nothing is stored yet: for the plan of a run. What it
        `asks` for is not counted here.
        """
        return 0, 0

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

    parts = list(parts_of(denoiser.pipe).values())
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
