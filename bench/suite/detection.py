"""The prompts that a suite's detectors are judged on, by kind, and what decides their scores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.base.digests import digest_of
from bench.base.errors import UserError
from bench.base.spread import spread
from bench.statistics.units import Design
from bench.suite.design import design_among
from bench.suite.prompts import Prompt, read_prompts
from bench.suite.schema import DetectionSettings, Role
from bench.suite.suite import Suite

# Grows with every change of what a score means, so that records of another number stand apart.
DETECTION = 1


@dataclass(frozen=True)
class Judged:
    """The prompts of a suite for detectors.

    Raises `UserError` for a suite without `[detection]`, and for lists that cannot be read.
    """

    suite: Suite

    @property
    def settings(self) -> DetectionSettings:
        found = self.suite.settings.detection
        if found is None:
            raise UserError(
                f"suite {self.suite.name} does not say what detectors are judged on: add a section"
                " [detection] (docs/detectors.md)"
            )
        return found

    @cached_property
    def kinds(self) -> dict[str, tuple[Prompt, ...]]:
        """Prompts by kind: memorized, clean, those that the suite names, and calibration."""
        settings, suite = self.settings, self.suite
        calibration = spread(suite.prompts("calibration"), settings.calibration)
        if not calibration:
            raise UserError(
                f"suite {suite.name}: detectors need [prompts.calibration] to set a threshold"
            )
        clean: tuple[Role, ...] = ("clean", "quality")
        found = {
            "memorized": suite.prompts("memorized"),
            "clean": _once([prompt for role in clean for prompt in suite.prompts(role)]),
        }
        for name, given in settings.negatives.items():
            found[name] = read_prompts(
                suite.places, f"detection.negatives.{name}", given, suite.limit
            )
        found["calibration"] = _once(calibration)
        # What is listed as memorized is that and nothing else.
        memorized = {prompt.text for prompt in found["memorized"]}
        for kind in (kind for kind in found if kind != "memorized"):
            kept = tuple(prompt for prompt in found[kind] if prompt.text not in memorized)
            if found[kind] and not kept:
                raise UserError(
                    f"suite {suite.name}: every prompt of the kind {kind} is one of the memorized"
                )
            found[kind] = kept
        return {kind: prompts for kind, prompts in found.items() if prompts}

    def design(self, kind: str) -> Design:
        """How the prompts of a kind hang together."""
        return design_among(self.suite, self.kinds[kind], kind == "memorized")

    @property
    def negatives(self) -> tuple[str, ...]:
        """The kinds that are not memorized and are judged."""
        return tuple(kind for kind in self.kinds if kind not in ("memorized", "calibration"))

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts there are of each kind."""
        return {kind: len(prompts) for kind, prompts in self.kinds.items()}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over everything that decides a score: the model and how it is sampled, the
        captions by kind, the labels, and the number of images.
        """
        settings = self.settings
        lists = {
            kind: hashlib.sha256(
                "\0".join(f"{prompt.id}\0{prompt.text}" for prompt in prompts).encode()
            ).hexdigest()
            for kind, prompts in self.kinds.items()
        }
        content: dict[str, Any] = {
            "detection": DETECTION,
            "seed": self.suite.settings.seed,
            "generation": self.suite.generation,
            "images": settings.images,
            "labels": self.suite.digest(settings.labels) if settings.labels else None,
            "prompts": lists,
        }
        return digest_of(content)[:16]


def _once(prompts: list[Prompt] | tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """Each caption once: a second one with the same text would be the same images again."""
    return tuple({prompt.text: prompt for prompt in reversed(prompts)}.values())[::-1]
