"""Sampling one batch: a request, the denoiser and the doors of a method become latents."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from bench.base.errors import UserError
from bench.contracts.method import Method, State
from bench.diffusion.denoiser import Denoiser, trajectory
from bench.diffusion.request import Request, Step
from bench.running.process_state import process_kept
from bench.running.recording import Recording


def sample(
    denoiser: Denoiser,
    request: Request,
    method: Method,
    state: State,
    recording: Recording | None = None,
    start: int = 0,
) -> Tensor:
    """Draw one batch with a method that is attached already: final latents `[B, C, h, w]`;
    `request.facts` holds what it reported. `recording` watches, where one is given. With `start`
    the loop begins at that step, whose noisy latents the request holds and `adjust` leaves as they
    are.

    Embeddings that are handed in stay where a method rewords the prompts.

    Raises `UserError` when a door returns something of the wrong shape or dtype, or a latent that
    is not finite.
    """
    with process_kept(f"method {_name(method)}: adjust"):
        adjusted = method.adjust(denoiser, request, state)
    _check_request(method, request, adjusted)
    if start:  # a method moves noise, and decides on it, at the first step
        adjusted = adjusted.replace(latents=request.latents, first=None)
    reworded = adjusted.prompts != request.prompts and not request.handed_in
    if reworded and adjusted.embeddings is request.embeddings:
        adjusted = _encoded_again(denoiser, request, adjusted)
    watch = recording.watch if recording else None
    attention = recording.attention() if recording else nullcontext()
    with torch.no_grad(), process_kept(f"method {_name(method)}: guide"), attention:
        latents = trajectory(
            denoiser, adjusted, lambda step: _guided(method, step, state), watch=watch, start=start
        )
    _check_facts(method, request)
    bad = (~torch.isfinite(latents)).flatten(1).any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise UserError(
            f"method {_name(method)}: the image of prompt '{adjusted.prompts[row]}' (seed"
            f" {adjusted.seeds[row]}) holds NaN or infinity"
        )
    return latents


def _encoded_again(denoiser: Denoiser, asked: Request, reworded: Request) -> Request:
    """A request for other prompts with their embeddings. The pooled text follows, but where the
    method has given one of its own.
    """
    embeddings, added = denoiser.texts(reworded.prompts)
    own = reworded.pooled is not asked.pooled
    pooled = reworded.pooled if own or added is None else added.pooled
    return reworded.replace(embeddings=embeddings, pooled=pooled)


def _name(method: Method) -> str:
    return type(method).__module__.rpartition(".")[2]


def _guided(method: Method, step: Step, state: State) -> Tensor:
    guided = method.guide(step, state)
    if (
        not isinstance(guided, Tensor)
        or guided.shape != step.latents.shape
        or guided.dtype not in _types(step.latents)
    ):
        raise UserError(
            f"method {_name(method)}: guide must return a {_shape(step.latents)}, not"
            f" {_shape(guided)}"
        )
    return guided


def _types(latents: Tensor) -> set[torch.dtype]:
    """The types that predictions for latents may have: converted ones are float32 at least."""
    return {latents.dtype, torch.promote_types(latents.dtype, torch.float32)}


def _check_request(method: Method, asked: Request, given: Any) -> None:
    if not isinstance(given, Request):
        raise UserError(
            f"method {_name(method)}: adjust must return a Request, not {type(given).__name__}"
        )
    parts = ["latents", "embeddings", "null_embeddings"]
    # of Stable Diffusion XL alone
    parts += [
        part for part in ("pooled", "null_pooled", "time_ids") if getattr(asked, part) is not None
    ]
    for part in parts:
        before, after = getattr(asked, part), getattr(given, part)
        alike = (
            isinstance(after, Tensor) and after.dtype == before.dtype and after.ndim == before.ndim
        )
        # the number of tokens may change, if it does so for both embeddings
        free = 1 if part in ("embeddings", "null_embeddings") else None
        if not alike or any(
            after.shape[axis] != before.shape[axis] for axis in range(before.ndim) if axis != free
        ):
            raise UserError(
                f"method {_name(method)}: adjust changed {part} from {_shape(before)} to"
                f" {_shape(after)}"
            )
        if not bool(torch.isfinite(after).all()):
            raise UserError(f"method {_name(method)}: adjust put NaN or infinity into {part}")
    if given.embeddings.shape != given.null_embeddings.shape:
        raise UserError(
            f"method {_name(method)}: embeddings are {_shape(given.embeddings)} and null_embeddings"
            f" {_shape(given.null_embeddings)}"
        )
    mask, wanted = given.attention_mask, tuple(given.embeddings.shape[:2])
    if mask is not None and not (
        isinstance(mask, Tensor)
        and mask.dtype == torch.bool
        and mask.shape == wanted
        and bool(mask.any(1).all())
    ):
        raise UserError(
            f"method {_name(method)}: attention_mask must be bool of shape {wanted} with a token in"
            f" every row, not {_shape(mask)}"
        )
    if given.first is not None:
        handed = given.first if isinstance(given.first, tuple) else ()
        if len(handed) != 2 or not all(
            isinstance(part, Tensor)
            and part.shape == given.latents.shape
            and part.dtype in _types(given.latents)
            and bool(torch.isfinite(part).all())
            for part in handed
        ):
            raise UserError(
                f"method {_name(method)}: first must be two finite predictions, each a"
                f" {_shape(given.latents)}"
            )


def _check_facts(method: Method, request: Request) -> None:
    for name, values in request.facts.items():
        sized = isinstance(values, (list, tuple)) and len(values) == len(request.prompts)
        if not sized or not all(
            isinstance(value, (bool, int, float)) and math.isfinite(value) for value in values
        ):
            raise UserError(
                f"method {_name(method)}: facts['{name}'] must be a list of a finite number or"
                f" truth value for each of {len(request.prompts)} images"
            )


def _shape(value: Any) -> str:
    return (
        f"{value.dtype} tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )
