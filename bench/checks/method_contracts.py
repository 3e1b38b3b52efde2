"""The contracts of a method: what a run and every comparison of runs rely on.

Each contract stands as a function; `METHOD_CONTRACTS` at the end says in words what each demands.
Every one tries the method on a tiny pipeline of its own, sampled in `STEPS` steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from bench.checks.contract import Broken, Contract, NotApplicable, Subject
from bench.checks.guards import random_state_untouched
from bench.checks.snapshots import first_difference, furthest, snapshot
from bench.contracts.method import CopyJudge, FitData, Method, Need, State, Where
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.families import FAMILIES, Family
from bench.running.sampling import sample
from bench.testbed.tiny import (
    CAPTIONS,
    build_tiny_base,
    build_tiny_pipeline,
    build_tiny_xl_pipeline,
)

# One prompt stands twice: its two images must not influence each other either.
PROMPTS, SEEDS = (CAPTIONS[2], CAPTIONS[0], CAPTIONS[2]), (11, 12, 13)
FIT_CAPTIONS, CLEAN_CAPTIONS = CAPTIONS[:3], CAPTIONS[3:]
ANCHOR = "a picture of an owl"  # of some fit captions; the others have none
NO_COPY = 1.5  # threshold: above every similarity, so that random pictures are no copies
STEPS, GUIDANCE, BATCH = 4, 4.0, 4
FAMILY: Family = "sd"  # of the model that the contracts are tried on
# Absolute, of latents of unit size: batches of other sizes add up in another order.
ROUNDING = 1e-2


@cache
def _pipeline(prediction_type: str, family: Family) -> Any:
    build = build_tiny_xl_pipeline if family == "sdxl" else build_tiny_pipeline
    return build(prediction_type=prediction_type)


@cache
def _base_pipeline() -> Any:
    return build_tiny_base()


@contextmanager
def tiny_denoiser(
    prediction_type: str = "epsilon", family: Family | None = None
) -> Iterator[Denoiser]:
    """A denoiser of a tiny pipeline, which is copied: what a method leaves behind stays here."""
    denoiser = Denoiser(
        copy.deepcopy(_pipeline(prediction_type, family or FAMILY)),
        steps=STEPS,
        guidance_scale=GUIDANCE,
        batch_size=BATCH,
    )
    # transformers marks a text encoder when its hidden states are first asked for; later snapshots
    # are not to take that for the method's doing.
    denoiser.added([""])
    yield denoiser
    denoiser.close()


def _tiny_base() -> Denoiser:
    """What the tiny pipeline might have been fine-tuned from, a copy of its own."""
    return Denoiser(copy.deepcopy(_base_pipeline()), STEPS, GUIDANCE, BATCH)


def fit_data(subject: Subject) -> FitData:
    """Prompts and pictures of the tiny suite, as far as the method says that it needs them."""
    needs = subject.configured.needed()
    of_fit = {"fit_prompts", "training_images", "anchors"}
    pictures: dict[str, tuple[Path, ...]] = {
        caption: (subject.folder / f"reference-{i}.png",) for i, caption in enumerate(FIT_CAPTIONS)
    }
    return FitData(
        fit_prompts=tuple(FIT_CAPTIONS) if of_fit & set(needs) else (),
        clean_prompts=tuple(CLEAN_CAPTIONS) if "clean_prompts" in needs else (),
        training_images=pictures if "training_images" in needs else {},
        anchors=dict.fromkeys(FIT_CAPTIONS[:2], ANCHOR) if "anchors" in needs else {},
        judge=CopyJudge(_greys, NO_COPY) if "copy_judge" in needs else None,
        base=_tiny_base() if "base" in needs else None,
    )


def _greys(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Mean colours as unit rows `[n, 3]`: a descriptor that is there at once."""
    rows = np.stack([picture.mean((0, 1)) + 1 for picture in pictures]).astype(np.float32)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def draw(
    denoiser: Denoiser,
    method: Method,
    state: State,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
) -> Tensor:
    """Final latents `[len(prompts), C, H, W]` of a method that is attached for this only."""
    with method.attach(denoiser.pipe, state):
        return sample(denoiser, denoiser.request(prompts, seeds), method, state)


def fitted(subject: Subject, denoiser: Denoiser) -> State:
    """What the method learns from the tiny suite."""
    return subject.configured.fit(denoiser, fit_data(subject))


def declares_where(subject: Subject) -> None:
    cls = subject.cls
    if cls.where not in get_args(Where):
        raise Broken(f"where is {cls.where!r}", f"choose one of {', '.join(get_args(Where))}")
    unknown = [
        need for need in (*cls.needs, *subject.configured.needed()) if need not in get_args(Need)
    ]
    if unknown:
        raise Broken(f"needs names {unknown[0]!r}", f"choose from {', '.join(get_args(Need))}")
    given = cls.families if isinstance(cls.families, tuple) else (cls.families,)
    if strange := [family for family in given if family not in FAMILIES]:
        raise Broken(f"families names {strange[0]!r}", f"choose from {', '.join(FAMILIES)}")


def state_is_tensors(subject: Subject) -> None:
    with tiny_denoiser() as denoiser:
        state = fitted(subject, denoiser)
        if not isinstance(state, dict) or not all(
            isinstance(value, Tensor) for value in state.values()
        ):
            raise Broken(
                f"fit returned {type(state).__name__}", "return a dict of names to tensors"
            )
        difference = first_difference(state, fitted(subject, denoiser))
        if difference:
            raise Broken(
                f"fitting twice on the same prompts: {difference}",
                "seed what is random by a parameter",
            )
        stored = (
            load(save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))
            if state
            else {}
        )
        fresh, read_back = (
            draw(denoiser, subject.configured, state),
            draw(denoiser, subject.configured, stored),
        )
        if not torch.equal(fresh, read_back):
            raise Broken(
                "with the state read back from disk latents differ by"
                f" {furthest(fresh, read_back)}",
                "keep all that was learned in the returned tensors",
            )


def restores_everything(subject: Subject) -> None:
    with tiny_denoiser() as denoiser:
        before, data = snapshot(denoiser.pipe), fit_data(subject)
        of_base = snapshot(data.base.pipe) if data.base else {}
        state = subject.configured.fit(denoiser, data)
        difference = first_difference(before, snapshot(denoiser.pipe)) or first_difference(
            of_base, snapshot(data.base.pipe) if data.base else {}
        )
        if difference:
            raise Broken(
                f"after fit {difference}",
                "undo in `finally` what fit did to the pipeline; only `attach` may edit it, while"
                " it lasts",
            )
        draw(denoiser, subject.configured, state)
        difference = first_difference(before, snapshot(denoiser.pipe))
        if difference:
            raise Broken(
                f"after sampling {difference}",
                "undo it when attach ends: copy weights back from a clone, remove hooks by their"
                " handles",
            )


def restores_after_an_exception(subject: Subject) -> None:
    class Interruption(Exception):
        pass

    with tiny_denoiser() as denoiser:
        state = fitted(subject, denoiser)
        before = snapshot(denoiser.pipe)
        try:
            with subject.configured.attach(denoiser.pipe, state):
                sample(denoiser, denoiser.request(PROMPTS, SEEDS), subject.configured, state)
                raise Interruption
        except Interruption:
            pass
        else:
            raise Broken(
                "attach swallowed an exception raised while it was active",
                "let it pass: undo in `finally`, not in `except`",
            )
        difference = first_difference(before, snapshot(denoiser.pipe))
        if difference:
            raise Broken(
                f"after an exception while attached {difference}",
                "wrap the yield of attach in try ... finally",
            )


def same_seeds_same_pixels(subject: Subject) -> None:
    with tiny_denoiser() as denoiser:
        state = fitted(subject, denoiser)
        first, second = (
            draw(denoiser, subject.configured, state),
            draw(denoiser, subject.configured, state),
        )
    if not torch.equal(first, second):
        raise Broken(
            f"the same seeds gave latents that differ by {furthest(first, second)}",
            "seed what is random from the request's seeds or a parameter",
        )


def batch_of_its_images(subject: Subject) -> None:
    method = subject.configured
    if method.mixes_images():
        raise NotApplicable("it says in mixes_images that images of a batch influence each other")
    with tiny_denoiser() as denoiser:
        state = fitted(subject, denoiser)
        together = draw(denoiser, method, state)
        # Attached once for all batches, which come in any order, as in a run.
        with method.attach(denoiser.pipe, state):
            singles = [
                sample(denoiser, denoiser.request([PROMPTS[row]], [SEEDS[row]]), method, state)
                for row in (2, 0, 1)
            ]
        alone = torch.cat([singles[1], singles[2], singles[0]])
    difference = (together - alone).abs().flatten(1).max(1).values
    if bool((difference > ROUNDING).any()):
        row = int(difference.argmax())
        raise Broken(
            f"image {row} differs by {difference[row].item():.3g} when it is sampled alone, after"
            " others",
            "treat the rows of a batch one by one (norms and random numbers too), or say so in"
            " mixes_images",
        )


def random_state(subject: Subject) -> None:
    with tiny_denoiser() as denoiser:
        with random_state_untouched("fit"):
            state = fitted(subject, denoiser)
        with random_state_untouched("sampling"):
            draw(denoiser, subject.configured, state)


def neutral_equals_none(subject: Subject) -> None:
    neutral = subject.cls.neutral
    if neutral is None:
        raise NotApplicable(
            "it declares no `neutral` parameters; a dict of those under which it does nothing is"
            " the strongest test there is"
        )
    method = subject.cls(**(subject.values | neutral))
    with tiny_denoiser() as denoiser:
        state = method.fit(denoiser, fit_data(subject))
        latents, of_none = draw(denoiser, method, state), draw(denoiser, Method(), {})
    if not torch.equal(latents, of_none):
        raise Broken(
            f"with {neutral} latents differ from those of `none` by {furthest(latents, of_none)}",
            "do nothing then, not even arithmetic",
        )


def evaluations_are_counted(subject: Subject) -> None:
    with tiny_denoiser() as denoiser:
        unet_class, true_rows = type(denoiser.pipe.unet), 0
        forward = unet_class.forward

        def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal true_rows
            true_rows += len(args[0] if args else kwargs["sample"])
            return forward(self, *args, **kwargs)

        data = fit_data(subject)
        with mock.patch.object(unet_class, "forward", counting):
            draw(denoiser, subject.configured, subject.configured.fit(denoiser, data))
        counted = denoiser.rows + (data.base.rows if data.base else 0)
        if counted != true_rows:
            raise Broken(
                f"{true_rows} rows went through the UNet and {counted} were counted",
                "evaluate through the denoiser, not by forward or a copy",
            )


def request_is_kept(subject: Subject) -> None:
    with tiny_denoiser() as denoiser:
        state = fitted(subject, denoiser)
        request = denoiser.request(PROMPTS, SEEDS)
        parts = ["latents", "embeddings", "null_embeddings"]
        parts += ["pooled", "null_pooled"] if denoiser.family == "sdxl" else []
        before = {name: getattr(request, name).clone() for name in parts}
        with subject.configured.attach(denoiser.pipe, state):
            subject.configured.adjust(denoiser, request, state)
        difference = first_difference(before, {name: getattr(request, name) for name in parts})
    if difference:
        raise Broken(
            f"adjust changed the request that it was given: {difference}",
            "return request.replace(...) with new tensors",
        )


def first_predictions(subject: Subject) -> None:
    with tiny_denoiser() as denoiser:
        state = fitted(subject, denoiser)
        with subject.configured.attach(denoiser.pipe, state):
            adjusted = subject.configured.adjust(denoiser, denoiser.request(PROMPTS, SEEDS), state)
            if adjusted.first is None:
                raise NotApplicable("it hands no predictions on")
            with torch.no_grad():
                evaluated = denoiser.branches(*denoiser.start(adjusted.latents), adjusted)
    for returned, true in zip(adjusted.first, evaluated, strict=True):
        if not torch.allclose(returned, true, atol=ROUNDING):
            raise Broken(
                f"the predictions in `first` differ by {furthest(returned, true)} from the model's",
                "make them for the latents and embeddings returned",
            )


def acts(subject: Subject) -> None:
    with tiny_denoiser() as denoiser:
        state = fitted(subject, denoiser)
        latents, of_none = draw(denoiser, subject.configured, state), draw(denoiser, Method(), {})
    if torch.equal(latents, of_none):
        raise NotApplicable(
            "on the tiny model its pictures are those of `none`, so the contracts saw little of it;"
            " try parameters that act, with -p"
        )


def any_prompts(subject: Subject) -> None:
    """Ordinary are also: a clean prompt, one prompt twice, a single image, a prompt longer than the
    text encoder reads, and the empty prompt.
    """
    with tiny_denoiser() as denoiser:
        state = fitted(subject, denoiser)
        for prompts in ([CAPTIONS[4]], [CAPTIONS[4]] * 2, [" ".join(CAPTIONS * 3), ""]):
            draw(denoiser, subject.configured, state, prompts, range(len(prompts)))


def v_prediction(subject: Subject) -> None:
    with tiny_denoiser("v_prediction") as denoiser:
        draw(denoiser, subject.configured, fitted(subject, denoiser))


def stable_diffusion_xl(subject: Subject) -> None:
    """Learning, sampling and undoing it, on a model of two text encoders."""
    method = subject.configured
    if "sdxl" not in method.families:
        raise NotApplicable(
            'it does not say that it works there; families = ("sd", "sdxl") has this tried'
        )
    with tiny_denoiser(family="sdxl") as denoiser:
        before = snapshot(denoiser.pipe)
        state = fitted(subject, denoiser)
        first, second = draw(denoiser, method, state), draw(denoiser, method, state)
        difference = first_difference(before, snapshot(denoiser.pipe))
    if not torch.equal(first, second):
        raise Broken(
            f"on a model of Stable Diffusion XL the same seeds differ by {furthest(first, second)}",
            "seed what is random from the request's seeds or a parameter",
        )
    if difference:
        raise Broken(
            f"on a model of Stable Diffusion XL, after sampling {difference}",
            "undo it when attach ends",
        )


METHOD_CONTRACTS: dict[str, Contract] = {
    "says where it acts and what it needs": declares_where,
    "fit is repeatable, and its state survives the disk": state_is_tensors,
    "leaves weights, hooks and attention processors as they were, bit for bit": restores_everything,
    "and also after an exception": restores_after_an_exception,
    "same seeds, same pixels": same_seeds_same_pixels,
    "a batch equals its images one by one": batch_of_its_images,
    "leaves global random state alone": random_state,
    "neutral parameters equal `none`, bit for bit": neutral_equals_none,
    "every evaluation of the model is counted": evaluations_are_counted,
    "keeps the request that it is given": request_is_kept,
    "predictions handed on are the model's": first_predictions,
    "does something": acts,
    "takes any prompt": any_prompts,
    "takes a v-prediction model": v_prediction,
    "takes Stable Diffusion XL, where it says so": stable_diffusion_xl,
}
