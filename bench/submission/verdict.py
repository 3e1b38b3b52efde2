"""What came of making a part of a record again: differences by prompt beside what they may be, and
the verdict, as text and JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.base.errors import visible
from bench.records.tolerance import SLACK

WORST = 3  # prompts of a score that are named


@dataclass(frozen=True)
class Compared:
    """One score, or the pixels of the kept pictures, on prompts that were made again: differences
    by prompt and what they may be.
    """

    name: str
    values: Mapping[str, tuple[float, float]]  # by prompt id: recorded, measured
    mean_allowed: float
    largest_allowed: float
    shift_allowed: float  # of the signed mean

    @property
    def differences(self) -> dict[str, float]:
        return {
            prompt: abs(measured - recorded) for prompt, (recorded, measured) in self.values.items()
        }

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.differences.values())))

    @property
    def shift(self) -> float:
        """Mean of measured minus recorded."""
        return float(np.mean([measured - recorded for recorded, measured in self.values.values()]))

    @property
    def largest(self) -> float:
        return max(self.differences.values())

    @property
    def within(self) -> bool:
        pairs = (
            (self.mean, self.mean_allowed),
            (self.largest, self.largest_allowed),
            (abs(self.shift), self.shift_allowed),
        )
        return all(difference <= allowed + SLACK for difference, allowed in pairs)

    @property
    def worst(self) -> list[str]:
        """The prompts that differ most, first the worst; those without any difference are left
        out.
        """
        found = self.differences
        return [
            prompt
            for prompt in sorted(found, key=lambda prompt: (-found[prompt], prompt))
            if found[prompt] > 0
        ][:WORST]


@dataclass(frozen=True)
class Verification:
    """What came of it.

    `identical`: every image is the recorded one, bit for bit; `agrees`: images differ, numbers do
     not; `differs`: numbers do, or the record
    contradicts itself or its method.
    """

    verdict: Literal["identical", "agrees", "differs"]
    seed: int  # that drew the prompts
    prompts: Mapping[str, tuple[str, ...]]  # by role: the ids of those that were made again
    images: int  # compared
    equal: int  # of them, those with the recorded digest
    made: int  # images that were made for this; the others were in the store
    problems: tuple[str, ...]  # what contradicts the record besides images and values by prompt
    compared: tuple[Compared, ...]
    not_compared: tuple[str, ...]  # scores and other parts of the record that are believed
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it, with what follows from the values instead of these."""
        follows = (
            "mean",
            "mean_allowed",
            "shift",
            "shift_allowed",
            "largest",
            "largest_allowed",
            "within",
            "worst",
        )
        compared = [
            {"name": one.name, "prompts": len(one.values)}
            | {name: getattr(one, name) for name in follows}
            for one in self.compared
        ]
        return vars(self) | {"compared": compared}


def text(verification: Verification) -> str:
    """The verdict with what it rests on, some lines."""
    told = ", ".join(f"{len(ids)} {role}" for role, ids in verification.prompts.items())
    lines = [
        f"seed {verification.seed} drew the prompts: {told}; {verification.made} images were made"
    ]
    lines += [f"FAIL  {problem}" for problem in verification.problems]
    for one in verification.compared:
        allowed = (
            f"difference: mean {one.mean:.5f} (allowed {one.mean_allowed:g}), in one direction"
            f" {one.shift:+.5f} ({one.shift_allowed:.3g}), largest {one.largest:.5f}"
            f" ({one.largest_allowed:g})"
        )
        lines.append(
            f"{one.name:<18} {len(one.values)} prompts  {allowed} "
            f" {'within' if one.within else 'BEYOND'}"
        )
        if not one.within:
            lines += [
                f"    {prompt}: recorded {one.values[prompt][0]:.6f}, measured"
                f" {one.values[prompt][1]:.6f}"
                for prompt in one.worst
            ]
    lines.append(f"not compared: {', '.join(verification.not_compared)}")
    lines += [f"note: {note}" for note in verification.notes]
    beyond = list(dict.fromkeys(one.name for one in verification.compared if not one.within))
    why = [f"beyond tolerance: {', '.join(beyond)}"] if beyond else []
    why += (
        [f"{len(verification.problems)} of the record's statements are wrong"]
        if verification.problems
        else []
    )
    meaning = {
        "identical": "and all numbers that were compared agree",
        "agrees": (
            "others differ as they do between machines or sizes of batches, and the numbers that"
            " were compared agree"
        ),
        "differs": "; ".join(why) or "nothing else could be compared",
    }
    images = f"{verification.equal} of {verification.images} images equal"
    return "\n".join(
        [*map(visible, lines), f"{verification.verdict}: {images}; {meaning[verification.verdict]}"]
    )
