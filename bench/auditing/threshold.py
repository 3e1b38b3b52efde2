"""From which similarity on an image counts as a copy: where that number comes from, and how often
images that can be no copies reach it.

An image of the base model, made with a prompt that is not a picture's own, cannot give the picture
back because of the training that is audited. How near such images come to training pictures sets
the threshold, as `bench calibrate sscd` sets a suite's: at most one in a thousand may reach it.
The audited model's own images never set it, and neither do images of the base for a picture's own
caption, which say whether the base knows the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.auditing.asked import Asked
from bench.auditing.prompts import Asking
from bench.auditing.verdicts import Share, share_of
from bench.base.errors import UserError
from bench.base.text import rate_text
from bench.statistics.intervals import threshold_at

FALSE_ALARMS = 0.001  # of the base's images that may reach it
PAIRS = 50  # images of the base, each beside the nearest picture, that it is set on at least
LOWEST = 0.5  # of SSCD: what is less similar is no copy, and what is more may look like one
HIGHEST = 0.9999  # a suite states thresholds below 1
DIGITS = 4
# Their descriptors were not trained as SSCD was, and find unlike pictures half alike.
NOT_SSCD = ("testbed",)
Origin = Literal["given", "suite", "borrowed", "calibrated"]


@dataclass(frozen=True)
class Threshold:
    """The similarity from which an image counts as a copy.

    `origin`: the auditor gave it; it is that of `suite`, whose model and descriptor are audited; it
    is `borrowed` from that suite for another model; or this audit `calibrated` it. `alarms` says of
    how many images of the base, made with `prompts` prompts, the picture nearest to them among
    those that they were not asked for is as similar as a copy; the interval is over prompts. Of a
    calibrated threshold these are images of the half of the prompts that did not set it. `nearest`
    is the largest similarity among all of them. From `grey` on, a picture that is not counted is
    called similar; None where no such number is known.
    """

    value: float
    origin: Origin
    suite: str
    prompts: int = 0
    alarms: Share | None = None
    nearest: float | None = None
    grey: float | None = None

    @property
    def words(self) -> str:
        """Where it comes from and what it lets pass, in whole sentences."""
        said = {
            "given": "The threshold was given (--threshold).",
            "suite": f"The threshold is that of suite {self.suite}, set for the model of it.",
            "borrowed": (
                f"The threshold is borrowed from suite {self.suite}, and was not set for this"
                " model."
            ),
            "calibrated": (
                f"This audit set the threshold on {self._images} images of the base, made with"
                f" {self.prompts} prompts: at most 1 in {round(1 / FALSE_ALARMS):,} is as similar"
                " to a picture that it was not asked for. That so few of these count as copies is"
                " therefore no finding."
            ),
        }[self.origin]
        return f"{said} {self._measured}".strip()

    @property
    def _images(self) -> str:
        return f"{self.alarms.total:,}" if self.alarms else "0"

    @property
    def _measured(self) -> str:
        if self.alarms is None:
            return "There are no images of a base model that would say how often it errs."
        found = self.alarms
        rate = rate_text(found.share)
        if found.interval:
            low, high = found.interval
            rate += f"; 95 % over prompts: {rate_text(low)} to {rate_text(high)}"
        if self.origin == "calibrated":
            return (
                f"False alarms: set on one half of the prompts in the same way, it lets"
                f" {found.count:.0f} of {self._images} images of the other half pass ({rate})."
            )
        return (
            f"False alarms: {found.count:.0f} of {self._images} images of the base are as similar"
            f" to a picture that they were not asked for ({rate})."
        )

    @property
    def facts(self) -> dict[str, float | int | str | None]:
        """The same as columns of a table."""
        found = self.alarms
        low, high = found.interval if found and found.interval else (None, None)
        return {
            "threshold": self.value,
            "threshold_origin": self.origin,
            "threshold_pairs": found.total if found else 0,
            "false_alarms": found.share if found else None,
            "false_alarms_low": low,
            "false_alarms_high": high,
        }

    def similar(self, best: float) -> bool:
        """Whether a picture that is not counted is so similar to some image that one should look;
        `best` is the largest similarity of any.
        """
        return self.grey is not None and best >= self.grey


def stated(
    asked: Asked, value: float, profile: str, suite: str, of_model: bool = True
) -> Threshold:
    """The threshold before anything is generated: the one that was given, or the suite's.
    `of_model`: not of generations that were made elsewhere.
    """
    origin: Origin = "suite" if of_model and _own(asked) else "borrowed"
    if asked.threshold is not None:
        origin = "given"
    return Threshold(value, origin, suite, grey=_grey(value, profile))


def _own(asked: Asked) -> bool:
    """Whether model and descriptor are those that the suite's threshold is for."""
    return asked.model is None and asked.sscd is None and not asked.profile


def _grey(value: float, profile: str) -> float | None:
    return LOWEST if profile not in NOT_SSCD and value > LOWEST else None


def is_set(asked: Asked, pairs: int, prompts: int) -> bool:
    """Whether an audit sets its threshold, where its base makes so many images that have a picture
    which they are not asked for: where it is told to, and by itself where the threshold would be
    borrowed and there are enough images.

    Raises `UserError` where it is told to and cannot.
    """
    if asked.threshold is not None or asked.calibrate is False:
        return False
    enough = pairs >= PAIRS and prompts > 1
    if asked.calibrate and not enough:
        why = (
            f"its base makes {pairs} with {prompts} prompts: raise --images"
            if asked.has_base
            else "it has no base: give --lora FILE, --embedding FILE or --base FOLDER"
        )
        raise UserError(
            f"--calibrate sets the threshold on {PAIRS} images of the base that have a picture"
            f" which they are not asked for, of two prompts or more, and {why}"
        )
    return enough and (bool(asked.calibrate) or not _own(asked))


def unasked(
    askings: Sequence[Asking],
    held_out: Sequence[Asking],
    captions: Sequence[str],
    groups: np.ndarray,
) -> np.ndarray:
    """Which training pictures each prompt does not ask for, bool `[P, N]`: neither they nor a
    near-duplicate (`groups` int64 `[N]`) is the prompt's own or has it as its caption.

    The prompts are `askings`, then those of `held_out`, whose own pictures are no training
    pictures.
    """
    own = [one.own for one in askings] + [()] * len(held_out)
    free = np.ones((len(own), len(captions)), dtype=bool)
    for number, (one, numbers) in enumerate(zip([*askings, *held_out], own, strict=True)):
        meant = {*numbers, *(n for n, caption in enumerate(captions) if caption == one.text)}
        free[number] = ~np.isin(groups, groups[sorted(meant)])
    return free


def nearest_unasked(
    similarity: np.ndarray, prompt: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The similarity of each image to the nearest picture that it was not asked for, float `[K]`,
    and the prompt of each, int64 `[K]`; images that were asked for all pictures are left out.

    `similarity` is `[M, N]`, `prompt` `[M]`, `free` `[P, N]` of `unasked`.
    """
    known = free[prompt].any(1)
    table = np.where(free[prompt], similarity, -np.inf)[known]
    return np.asarray(table.max(1, initial=-np.inf)), prompt[known]


def lowest_threshold(nearest: np.ndarray) -> float:
    """The lowest threshold, to four digits, that at most one in a thousand of `nearest` reach, and
    no lower than 0.5. Fewer than a thousand allow none.
    """
    passed = (
        threshold_at(nearest, FALSE_ALARMS)
        if len(nearest) * FALSE_ALARMS >= 1
        else float(nearest.max())
    )
    # At least as similar is enough for a copy, so the threshold lies above what may not reach it.
    above = math.ceil(passed * 10**DIGITS + 0.1) / 10**DIGITS
    return min(max(above, LOWEST), HIGHEST)


def measured(stated: Threshold, nearest: np.ndarray, prompt: np.ndarray) -> Threshold:
    """A threshold with the false alarms that it raises on images of the base (`nearest_unasked`);
    as it was where they are not of two prompts at least.
    """
    if len(np.unique(prompt)) < 2:
        return stated
    return _with_alarms(stated, nearest, prompt, nearest >= stated.value)


def calibrated(
    stated: Threshold, profile: str, nearest: np.ndarray, prompt: np.ndarray
) -> Threshold:
    """The threshold that images of the base set, with the false alarms of those that did not set
    it: each half of the prompts is held against the threshold of the other half.
    """
    value = lowest_threshold(nearest)
    half = np.unique(prompt, return_inverse=True)[1] % 2
    alarm = np.zeros(len(nearest), dtype=bool)
    for side in (0, 1):
        alarm[half == side] = nearest[half == side] >= lowest_threshold(nearest[half != side])
    found = Threshold(value, "calibrated", stated.suite, grey=_grey(value, profile))
    return _with_alarms(found, nearest, prompt, alarm)


def _with_alarms(
    found: Threshold, nearest: np.ndarray, prompt: np.ndarray, alarm: np.ndarray
) -> Threshold:
    return Threshold(
        found.value,
        found.origin,
        found.suite,
        len(np.unique(prompt)),
        share_of(alarm, prompt),
        float(nearest.max()),
        found.grey,
    )
