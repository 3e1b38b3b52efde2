"""The result of `bench verify`: differences by prompt beside what they may be, and the verdict, as
text and as JSON.
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
    """One score, or the pixels of the kept pictures, on prompts that were made again.

    `values` holds by prompt id what was recorded and what was measured now. The other fields say by
    how much these may differ: on average, for a single prompt, and as a signed mean.
    """

    name: str
    values: Mapping[str, tuple[float, float]]
    mean_allowed: float
    largest_allowed: float
    shift_allowed: float

    @property
    def differences(self) -> dict[str, float]:
        """Absolute differences by prompt id."""
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
        """Whether all three differences are allowed."""
        pairs = (
            (self.mean, self.mean_allowed),
            (self.largest, self.largest_allowed),
            (abs(self.shift), self.shift_allowed),
        )
        return all(difference <= allowed + SLACK for difference, allowed in pairs)

    @property
    def worst(self) -> list[str]:
        """The ids of at most `WORST` prompts that differ, the worst one first."""
        by_prompt = self.differences
        return [
            prompt
            for prompt in sorted(by_prompt, key=lambda prompt: (-by_prompt[prompt], prompt))
            if by_prompt[prompt] > 0
        ][:WORST]


@dataclass(frozen=True)
class Verification:
    """What came of making a part of a record again.

    The verdict is `identical` when every image is the recorded one, bit for bit, and `agrees` when
    images differ and numbers do not. It is `differs` when numbers differ, or when the record
    contradicts itself or its method.
    """

    verdict: Literal["identical", "agrees", "differs"]
    seed: int  # it drew the prompts
    prompts: Mapping[str, tuple[str, ...]]  # by role: the ids of those that were made again
    images: int  # number of images that were compared
    equal: int  # of them, those with the recorded digest
    made: int  # images that were made for this; the others were in the store
    problems: tuple[str, ...]  # what contradicts the record besides images and values by prompt
    compared: tuple[Compared, ...]
    not_compared: tuple[str, ...]  # scores and other parts of the record that are believed
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it; of the values by prompt, what follows from them."""
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
            {"name": score.name, "prompts": len(score.values)}
            | {name: getattr(score, name) for name in follows}
            for score in self.compared
        ]
        return vars(self) | {"compared": compared}


def text(verification: Verification) -> str:
    """The verdict with what it rests on, for people."""
    drawn = ", ".join(f"{len(ids)} {role}" for role, ids in verification.prompts.items())
    lines = [
        f"seed {verification.seed} drew the prompts: {drawn}; {verification.made} images were made"
    ]
    lines += [f"FAIL  {problem}" for problem in verification.problems]
    for score in verification.compared:
        lines += _score_lines(score)
    lines.append(f"not compared: {', '.join(verification.not_compared)}")
    lines += [f"note: {note}" for note in verification.notes]
    images = f"{verification.equal} of {verification.images} images equal"
    return "\n".join(
        [*map(visible, lines), f"{verification.verdict}: {images}; {_meaning(verification)}"]
    )


def _score_lines(score: Compared) -> list[str]:
    """The differences of one score, and where they are too large the worst prompts."""
    allowed = (
        f"difference: mean {score.mean:.5f} (allowed {score.mean_allowed:g}), in one direction"
        f" {score.shift:+.5f} ({score.shift_allowed:.3g}), largest {score.largest:.5f}"
        f" ({score.largest_allowed:g})"
    )
    lines = [
        f"{score.name:<18} {len(score.values)} prompts  {allowed} "
        f" {'within' if score.within else 'BEYOND'}"
    ]
    if not score.within:
        lines += [
            f"    {prompt}: recorded {score.values[prompt][0]:.6f}, measured"
            f" {score.values[prompt][1]:.6f}"
            for prompt in score.worst
        ]
    return lines


def _meaning(verification: Verification) -> str:
    """What the verdict means, after the count of equal images."""
    if verification.verdict == "identical":
        return "and all numbers that were compared agree"
    if verification.verdict == "agrees":
        return (
            "others differ as they do between machines or sizes of batches, and the numbers that"
            " were compared agree"
        )
    beyond = dict.fromkeys(score.name for score in verification.compared if not score.within)
    reasons = [f"beyond tolerance: {', '.join(beyond)}"] if beyond else []
    if verification.problems:
        reasons.append(f"{len(verification.problems)} of the record's statements are wrong")
    return "; ".join(reasons) or "nothing else could be compared"
