"""Away from what the model was fine-tuned from (FineXtract, ICML 2025, arXiv 2410.03039).

Whoever publishes a fine-tuned model mostly says from what; the base model is public. The attacker
holds both. What they say differently is what fine-tuning taught, so every step goes from the base
model's prediction for the empty prompt past the fine-tuned one's for the caption:

    e = e_b(0) + w (e_f(c) - e_b(0)) + k e_b(0).

The source takes w = 3 and k = -0.02 for models that were fine-tuned as a whole, w = 5 and k = 0 for
LoRAs, and 50 images of each training picture; here they are 16 by default. With w = 1 and k = 0 it
is the plain conditional prediction, and with the fine-tuned model in place of its base ordinary
guidance at the scale w.

Then the attacker names as many pictures as were trained on, without having seen one: among the
images of a caption those that are alike, by the suite's copy descriptor, are joined; the largest
clique goes first, then the largest of the rest, one for each training picture of the caption, and
of each clique the picture that is nearest to all others is named. The source lowers its threshold
of likeness until there are enough cliques; here it is fixed, and a clique may be a single image.

Two controls stand beside it, as many images each and with the same initial noise: `own`, the same
rule with the model's own empty prompt in place of the base model's, which is the same w without the
base; and `plain`, the suite's guidance. `excess` is what the base adds: pictures named by way of it
less those named by way of `own`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attacks._cliques import BUDGET, maximum_clique
from attacks._levels import scales_of
from bench import (
    EXHIBITS,
    IMAGES_PER_PROMPT,
    Arrays,
    Attack,
    Denoiser,
    Exhibit,
    Finding,
    Guide,
    Held,
    Known,
    PerImage,
    PerSet,
    Prompt,
    Scores,
    Shown,
    Stage,
    Step,
    Suite,
    Target,
    Threat,
    Unmeasurable,
    UserError,
    decode_image,
    design_of,
    digest_of,
    plain_stage,
    read_picture,
    spread,
)
from bench.features import CopyDescriptor
from bench.statistics import paired_difference

OWN, BASE = 0, 1  # marks of the stage: whose empty prompt guidance goes away from
AT_ONCE = 4  # pictures of one call
SHOWN = 4  # of them a record shows


class ModelGuidance(Attack):
    """Guide the fine-tuned model away from its base model, and name the pictures that come again
    and again (FineXtract).
    """

    threat: ClassVar[Threat] = "weights"
    needs_base: ClassVar[bool] = True
    names: ClassVar[tuple[str, ...]] = (
        "model_guidance_excess",
        "model_guidance_extracted",
        "model_guidance_own",
        "model_guidance_plain",
        "model_guidance_sscd",
        "model_guidance_own_sscd",
        "model_guidance_plain_sscd",
    )
    shown: ClassVar[Mapping[str, Shown]] = {
        "model_guidance_extracted": Shown(
            heading="by model guidance",
            decimals=3,
            meaning="share of training pictures that an attacker names who guides the model away"
            " from the one that it was fine-tuned from",
        ),
        "model_guidance_excess": Shown(
            heading="model guidance excess",
            decimals=3,
            meaning="the same less those named by way of as many images at the same scale without"
            " the base model",
        ),
    }
    trial: ClassVar[Mapping[str, Any]] = {"images": 3, "targets": 3}

    w: float = Field(
        5.0, description="how far to go from the base model's prediction (LoRA: 5, DreamBooth: 3)"
    )
    k: float = Field(
        0.0, description="weight of the base model's prediction beside (LoRA: 0, DreamBooth: -0.02)"
    )
    images: int = Field(
        16, ge=1, le=IMAGES_PER_PROMPT, description="of each training picture (source: 50)"
    )
    targets: int | None = Field(
        None, ge=2, description="training pictures that are attacked, evenly spread; all by default"
    )
    threshold: float | None = Field(
        None,
        gt=-1,
        lt=1,
        description=(
            "similarity above which two images are joined; by default that of the suite's sscd"
        ),
    )
    budget: int = Field(BUDGET, ge=1, description="nodes of each search for a clique")

    def is_of_set(self, name: str) -> bool:
        return name == "model_guidance_excess"

    def values_a_prompt(self, name: str) -> int:
        return 1

    def fits(self, suite: Suite) -> None:
        """Raises `UserError` where the suite cannot tell a copy."""
        if "sscd" not in suite.settings.metrics:
            raise UserError(
                "attack model_guidance judges copies as the suite's metric sscd does, and suite"
                f" {suite.name} has no [metrics.sscd]"
            )

    def attacked(self, suite: Suite) -> list[Prompt]:
        """The prompts whose first training picture the attacker is after."""
        pictured = [prompt for prompt in suite.prompts("memorized") if prompt.references]
        return spread(pictured, self.targets)

    def searched(self, suite: Suite) -> tuple[int, int]:
        """Each image of each of the three kinds takes two rows a step."""
        there, found = suite.references("memorized")
        pictures = there if suite.lenient else found
        pictures = pictures if self.targets is None else min(pictures, self.targets)
        return pictures, pictures * self.images * 3 * 2 * suite.settings.model.steps

    def run(self, target: Target) -> Scores:
        """Raises `Unmeasurable` for fewer than two training pictures."""
        suite = target.suite
        prompts = self.attacked(suite)
        if len(prompts) < 2:
            raise Unmeasurable("fewer than two memorized prompts of the suite have a picture")
        known = target.known(prompts, self.images, True)
        guided = target.find([self.stage(target)], known)
        plain = target.find([plain_stage("edited", self.images)], known)
        given = suite.settings.metrics["sscd"]
        descriptor = CopyDescriptor(
            suite.path(given["weights"]), given.get("profile", "nemo"), target.device
        )
        copied = float(given.get("threshold", 0.7))
        joined = copied if self.threshold is None else self.threshold
        pictures = descriptor([read_picture(one.picture) for one in known])
        named = {
            "own": self.named(guided, OWN, pictures, joined),
            "base": self.named(guided, BASE, pictures, joined),
            "plain": self.named(plain, 0, pictures, joined),
        }
        rows = np.sum([finding.numbers["rows"] for finding in guided], 0)
        details = {
            "pictures": len(known),
            "images": self.images,
            "w": self.w,
            "k": self.k,
            "joined_above": joined,
            "similarity": copied,
            "profile": descriptor.profile,
            "weights_sha256": descriptor.digest,
            "row_evaluations": {"model": int(rows[0]), "base": int(rows[1])},
            "clique_mean": {how: round(float(np.mean(one.sizes)), 3) for how, one in named.items()},
            "unproven": {how: one.unproven for how, one in named.items()},
        }
        target.exhibits.extend(_exhibits(guided, plain, named["base"].similarity))

        def share(how: str) -> PerImage:
            table = (named[how].similarity > copied).astype(float)[:, None]
            return PerImage(table, prompts, "share", False, proportion=True, details=details)

        def cosine(how: str) -> PerImage:
            return PerImage(
                named[how].similarity[:, None], prompts, "cosine", False, details=details
            )

        extracted, own = share("base"), share("own")
        return {
            "model_guidance_excess": _excess(suite, extracted, own),
            "model_guidance_extracted": extracted,
            "model_guidance_own": own,
            "model_guidance_plain": share("plain"),
            "model_guidance_sscd": cosine("base"),
            "model_guidance_own_sscd": cosine("own"),
            "model_guidance_plain_sscd": cosine("plain"),
        }

    def stage(self, target: Target) -> Stage:
        """Images by way of the model's own empty prompt and of its base's, `[2, images]` of each
        picture, and the `rows` that they took on the model and on its base, int64 `[2]`.
        """
        suite = target.suite
        base = suite.needed_base("attack model_guidance")
        settings = {
            "images": self.images,
            "w": self.w,
            "k": self.k,
            "base": digest_of(base.generation),
        }

        def work(held: Held, targets: Sequence[Known], before: Sequence[Arrays]) -> list[Arrays]:
            return self.generate(held, target.base(), targets)

        return Stage("model_guidance", "edited", settings, work, at_once=AT_ONCE)

    def generate(self, held: Held, base: Denoiser, targets: Sequence[Known]) -> list[Arrays]:
        """What the stage gives of some pictures."""
        request = held.request(targets, self.images)
        models = (held.denoiser, base)
        before = [model.evaluations for model in models]
        made = []
        for away_from in models:
            guide = self.guide(held.denoiser, away_from)
            made.append(held.drawn(request, guide))
        spent = [model.evaluations - start for model, start in zip(models, before, strict=True)]
        # rows of one batch cost alike, whichever picture they are of
        rows = np.array(spent) // len(targets)
        every = [
            pictures.reshape(len(targets), self.images, *pictures.shape[1:]) for pictures in made
        ]
        return [
            {"pictures": np.stack([pictures[row] for pictures in every]), "rows": rows}
            for row in range(len(targets))
        ]

    def guide(self, model: Denoiser, base: Denoiser) -> Guide:
        """The rule of the source, from the prediction of `model` for the caption and that of `base`
        for the empty prompt: one row of each a step and image.
        """
        scales, empty = scales_of(model), base.null_embeddings(1)

        def guided(step: Step) -> Tensor:
            request, index = step.request, step.index
            latents = (step.latents * scales[index]).to(model.dtype)
            time, mask = model.timesteps[index], request.attention_mask
            with torch.no_grad():
                given = model.epsilon(latents, time, request.embeddings, mask, index)
                nothing = empty.expand(len(latents), -1, -1)
                without = base.epsilon(latents, time, nothing, mask, index)
            # written so that w = 1 and k = 0 leave the caption's prediction bit for bit
            return self.w * given + (1 - self.w + self.k) * without

        return guided

    def named(
        self, found: Sequence[Finding], mark: int, pictures: np.ndarray, joined: float
    ) -> Named:
        """The pictures that the attacker names, judged by the training pictures' descriptors
        `[pictures, d]`.
        """
        similarity, sizes, unproven = np.zeros(len(found)), list[int](), 0
        texts = [finding.known.prompt.text for finding in found]
        for text in dict.fromkeys(texts):
            rows = [row for row, other in enumerate(texts) if other == text]
            features = np.concatenate([found[row].features[mark] for row in rows])
            cliques = named_images(features, len(rows), joined, self.budget)
            medoids = features[[one.medoid for one in cliques]]
            similarity[rows] = (pictures[rows] @ medoids.T).max(1)
            sizes += [one.size for one in cliques]
            unproven += sum(not one.proven for one in cliques)
        return Named(similarity, tuple(sizes), unproven)


@dataclass(frozen=True)
class Named:
    """What the attacker names by one way of generating.

    `similarity` float64 `[pictures]`: of each training picture to the nearest of the images that
    are named for its caption. `sizes` of the cliques behind them, of which `unproven` may not be
    the largest.
    """

    similarity: np.ndarray
    sizes: tuple[int, ...]
    unproven: int


@dataclass(frozen=True)
class NamedImage:
    """A clique of images by its `medoid`, the number of the image that is nearest to the others."""

    medoid: int
    size: int
    proven: bool


def named_images(
    features: np.ndarray, count: int, joined: float, budget: int = BUDGET
) -> list[NamedImage]:
    """Of images with these descriptors, unit rows `[n, d]`, up to `count` cliques with similarities
    above `joined`: the largest, then the largest of what is left.
    """
    alike = features @ features.T
    alike = np.minimum(alike, alike.T)  # products may round differently on both sides
    left, found = np.arange(len(features)), list[NamedImage]()
    while len(found) < count and len(left):
        clique = maximum_clique(alike[np.ix_(left, left)] > joined, budget)
        members = left[list(clique.members)]
        nearest = int(alike[np.ix_(members, members)].sum(1).argmax())
        found.append(NamedImage(int(members[nearest]), len(members), clique.status == "exact"))
        left = np.setdiff1d(left, members)
    return found


def _excess(suite: Suite, extracted: PerImage, own: PerImage) -> PerSet:
    """The paired difference of two shares, with an interval over what hangs together."""
    one, other = (
        {p.id: float(row[0]) for p, row in zip(score.prompts, score.table, strict=True)}
        for score in (extracted, own)
    )
    found = paired_difference(one, other, share=True, design=design_of(suite, "memorized"))
    if found is None:
        raise Unmeasurable("fewer than two memorized prompts of the suite have a picture")
    value, low, high = found
    count = len(one)
    return PerSet(
        value, count, "difference of shares", False, (low, high), count, extracted.details
    )


def _exhibits(
    guided: Sequence[Finding], plain: Sequence[Finding], similarity: np.ndarray
) -> list[Exhibit]:
    """The training pictures that came nearest: a plain image, then guided ones."""
    order = np.argsort(-similarity, kind="stable")[: min(SHOWN, EXHIBITS)]
    return [
        Exhibit(
            guided[row].known.prompt,
            f"plain, then guided away from the base model (similarity {similarity[row]:.2f})",
            [
                np.asarray(decode_image(png)[0])
                for png in (*plain[row].shown[:1], *guided[row].shown)
            ],
            read_picture(guided[row].known.picture),
        )
        for row in order
    ]
