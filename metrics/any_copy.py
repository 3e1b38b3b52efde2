"""Is a generation a copy of any training picture, not only of its own prompt's?

A method that leads from one memorized picture to another lowers the similarity to the prompt's own
training picture and has mitigated nothing. So every generation is compared with all training
pictures that the suite's prompts name, those of fit prompts among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from bench import Evaluation, Metric, PerImage, PerSet, Role, Suite, Unmeasurable, read_picture
from bench.features import PROFILES, CopyDescriptor, Extractor, ProfileName

_SCORES: tuple[tuple[str, Role], ...] = (("any_copy", "memorized"), ("any_copy_clean", "clean"))


class AnyCopy(Metric):
    """Share of generations that copy any training picture of the suite, on memorized and on clean
    prompts.
    """

    names: ClassVar[tuple[str, ...]] = tuple(name for name, _ in _SCORES)
    roles: ClassVar[tuple[Role, ...]] = tuple(role for _, role in _SCORES)
    files: ClassVar[tuple[str, ...]] = ("weights",)
    trial: ClassVar[Mapping[str, Any]] = {"weights": "descriptor.safetensors", "profile": "testbed"}

    weights: str = Field(description="weights of a copy descriptor, relative to the suite file")
    profile: ProfileName = Field("nemo", description=f"one of {', '.join(PROFILES)}")
    threshold: float = Field(0.7, gt=-1, lt=1, description="an image above it counts as a copy")

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        descriptor = CopyDescriptor(suite.path(self.weights), self.profile, device)
        return {role: [descriptor] for role in self.roles}

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        """Raises `Unmeasurable` where no prompt has a training picture."""
        suite = evaluation.suite
        paths = suite.training_pictures
        if not paths:
            raise Unmeasurable("no prompt of the suite has a training picture")
        descriptor = evaluation.loaded(
            CopyDescriptor(evaluation.path(self.weights), self.profile, evaluation.device)
        )
        training = descriptor([read_picture(path) for path in paths])
        details = {
            "profile": self.profile,
            "weights_sha256": descriptor.digest,
            "threshold": self.threshold,
            "training_pictures": len(paths),
        }
        scores: dict[str, PerImage | PerSet] = {}
        for name, role in _SCORES:
            if not suite.prompts(role):
                continue
            samples = evaluation.samples(role)
            nearest = (samples.features(descriptor) @ training.T).max(2)
            copies = (nearest > self.threshold).astype(float)
            scores[name] = PerImage(
                copies, samples.prompts, "share", False, proportion=True, details=details
            )
        return scores
