"""Images beside pictures: the networks that compare them, and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from bench.auditing.pictures import Pictures, left_out, nearest_views, refuse_alike, refuse_shared
from bench.auditing.sampling import Generated
from bench.auditing.suites import FEW, Judges
from bench.base.errors import UserError
from bench.base.progress import Report, silent
from bench.captioned.views import Training
from bench.features.networks import CopyDescriptor, OpenClip
from bench.suite.suite import Suite


@dataclass
class Seen:
    """Similarities of images to the training pictures, `[M, N]`, the view that each is nearest to,
    and similarities to the held-out pictures, `[M, H]`.
    """

    similarity: np.ndarray
    view: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Compares images with the training pictures and the held-out ones; each network is loaded
    once. `clip` is None where likeness is not measured.
    """

    descriptor: CopyDescriptor
    clip: OpenClip | None
    training: Pictures
    holdout: Pictures | None

    @cached_property
    def _liked(self) -> np.ndarray:
        """CLIP's embeddings of the training pictures, `[N, c]`."""
        assert self.clip is not None
        return self.clip(list(self.training.plain))

    def among_training(self) -> np.ndarray:
        """The similarity of each training picture to each, `[N, N]`."""
        return by_picture(self.training, self.training)

    def held_out_to_training(self) -> np.ndarray:
        """The similarity of each held-out picture to each training picture, `[H, N]`."""
        if self.holdout is None:
            return np.zeros((0, len(self.training)), dtype=np.float32)
        return by_picture(self.holdout, self.training)

    def seen(self, features: np.ndarray) -> Seen:
        """Similarities of some images, by their descriptors `[M, d]`, to all pictures."""
        near, view = nearest_views(
            features, self.training.described, self.training.owners, len(self.training)
        )
        held = np.zeros((len(features), 0), dtype=np.float32)
        if self.holdout:
            held, _ = nearest_views(
                features, self.holdout.described, self.holdout.owners, len(self.holdout)
            )
        return Seen(near, view, held)

    def seen_of(self, made: Generated) -> Seen:
        """The same of images in the store."""
        return self.seen(made.features(self.descriptor))

    def novel(self, made: Generated) -> tuple[np.ndarray, np.ndarray] | None:
        """Of images of novel prompts: mean similarity (CLIP) to the training pictures and cosine to
        the prompt, both `[P, m]`; None where there are no such prompts or no CLIP.
        """
        places = [n for n, one in enumerate(made.askings) if one.kind == "novel"]
        if self.clip is None or not places:
            return None
        features = made.features(self.clip)
        texts, _ = self.clip.texts([made.askings[place].text for place in places])
        like, aligned = [], []
        for place, text in zip(places, texts, strict=True):
            images = features[made.prompt == place][:FEW]
            like.append((images @ self._liked.T).mean(1))
            aligned.append(images @ text)
        return np.stack(like), np.stack(aligned)


def refuse_held_out(
    comparison: Comparison, training: Training, threshold: float, report: Report = silent
) -> None:
    """Raises `UserError` where a held-out picture is one of the training pictures, those among them
    that are not looked for.
    """
    holdout = comparison.holdout
    if holdout is None:
        return
    refuse_alike(comparison.training, holdout, comparison.held_out_to_training(), threshold)
    if comparison.training.left:
        others = left_out(comparison.training, training, comparison.descriptor, report)
        refuse_shared(others, holdout)
        refuse_alike(others, holdout, by_picture(holdout, others), threshold)


def descriptor_of(judges: Judges, like: Suite, device: torch.device) -> CopyDescriptor:
    """The copy descriptor of a suite. Raises `UserError` where it is not here."""
    return CopyDescriptor(like.path(judges.sscd["weights"]), str(judges.sscd["profile"]), device)


def comparison_of(
    judges: Judges,
    like: Suite,
    descriptor: CopyDescriptor,
    pictures: tuple[Pictures, Pictures | None],
    notes: list[str],
) -> Comparison:
    """The networks of a suite for the training pictures and the held-out ones. Where its CLIP is
    not here, a note says so.
    """
    return Comparison(descriptor, _clip(judges, like, descriptor.device, notes), *pictures)


def _clip(judges: Judges, like: Suite, device: torch.device, notes: list[str]) -> OpenClip | None:
    given = judges.clip
    if given is None:
        return None
    weights = given.get("weights", "")
    try:
        return OpenClip(
            given["model"],
            None if weights else like.path(given["model"]),
            like.path(weights) if weights else None,
            device,
        )
    except UserError as error:
        notes.append(f"Use was not measured: {error}")
        return None


def by_picture(first: Pictures, second: Pictures) -> np.ndarray:
    """The largest similarity between views of pictures, `[first, second]`."""
    near, _ = nearest_views(first.described, second.described, second.owners, len(second))
    starts = np.searchsorted(first.owners, np.arange(len(first)))
    return np.asarray(np.maximum.reduceat(near, starts, axis=0))
