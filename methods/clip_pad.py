"""Padding of the prompt that says less about a memorized image: other padding tokens, and
embeddings set to zero (Kim and No, CVPR findings 2026, arXiv 2605.02908).

Stable Diffusion 1 fills the prompt up with end tokens, whose embeddings repeat what the end of the
text says about the whole of it, and so carry a memorized image better than the words do. The paper
fills up with "!" instead, as Stable Diffusion 2 does, and sets the embedding of the true end token
to zero (`variant=eot`), or leaves that out (`pad`), or keeps the padding and sets its first part to
zero (`ratio`).

The released code changes the tokenizer and leaves it changed, so its empty prompt is filled up with
"!" too (`null=same`); here the tokenizer is not touched at all. The published similarities are to
the picture that the same noise gives without the mitigation, and not to a training picture. That
`share` can be less than all of the padding in the first two variants is ours.

Of the two text encoders of Stable Diffusion XL the second is filled up with "!" already, so other
padding concerns what the first one gives; embeddings of both are set to zero.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench import Denoiser, Method, Request, State, Swept, UserError, Where

PADDING = "!"  # the first token of CLIP's vocabulary


class ClipPad(Method):
    """Fill the prompt up with "!" and take the end token's embedding away (Kim and No)."""

    where: ClassVar[Where] = "embedding"
    paper: ClassVar[str] = "Kim and No 2026, arXiv:2605.02908"
    families: ClassVar = ("sd", "sdxl")
    in_chunks: ClassVar[bool] = False
    neutral: ClassVar[dict[str, Any] | None] = {"variant": "ratio", "share": 0}
    swept: ClassVar[Swept | None] = ("share", (0.25, 0.5, 0.75, 1))

    variant: Literal["eot", "pad", "ratio"] = Field(
        "eot",
        description=(
            "eot: padding is '!' and the end token's embedding zero; pad: padding is '!', which"
            " does nothing where it was so before, as in Stable Diffusion 2; ratio: the first part"
            " of the padding's embeddings is zero"
        ),
    )
    share: float | None = Field(
        None,
        ge=0,
        le=1,
        description=(
            "of the padding, from the end token on, that is changed; by default all of it, and with"
            " variant=ratio the published 0.7"
        ),
    )
    null: Literal["same", "original"] = Field(
        "same",
        description=(
            "the empty prompt: filled up like the prompt (code), or as the model does it; with"
            " variant=ratio it is as the model does it"
        ),
    )

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """Other embeddings of the prompts `[B, T, D]`, and of the empty prompt; no evaluation of
        the UNet.
        """
        ratio = self.variant == "ratio"
        share = self.share if self.share is not None else 0.7 if ratio else 1.0
        if ratio:
            if not share:
                return request
            changed = _padding(denoiser, request.prompts, share)
            return request.replace(embeddings=_zeroed(request.embeddings, changed))
        embeddings, null = request.embeddings, request.null_embeddings
        if denoiser.pipe.tokenizer.pad_token != PADDING:
            if not request.handed_in:  # an embedding has no padding that could be another
                filled = _filled_up(denoiser, request.prompts, share)
                embeddings = _with_first(embeddings, filled)
            # Zeros, as models of Stable Diffusion XL have them, are no text with a padding.
            if self.null == "same" and bool(null.any()):
                null = _with_first(null, _filled_up(denoiser, ("",), share))
        if self.variant == "eot":
            ends = denoiser.lengths(request.prompts) - 1
            tokens = torch.arange(embeddings.shape[1])
            embeddings = _zeroed(embeddings, tokens == ends[:, None])
        return request.replace(embeddings=embeddings, null_embeddings=null)


def _padding(denoiser: Denoiser, prompts: Sequence[str], share: float) -> Tensor:
    """The first part of the padding of each prompt, bool `[B, T]`."""
    lengths = denoiser.lengths(prompts)
    after = torch.arange(denoiser.pipe.tokenizer.model_max_length) - lengths[:, None]
    # in double precision, as the code cuts it
    most = ((after.shape[1] - lengths).double() * share).long()
    return (after >= 0) & (after < most[:, None])


def _zeroed(embeddings: Tensor, tokens: Tensor) -> Tensor:
    """Embeddings `[B, T, D]` with zero at some tokens, bool `[B, T]`."""
    return embeddings.masked_fill(tokens.to(embeddings.device)[..., None], 0)


def _with_first(embeddings: Tensor, filled: Tensor) -> Tensor:
    """Embeddings `[B, T, D]` whose first numbers are those of the first text encoder, `[B or 1, T,
    D']`: all of them in Stable Diffusion 1 and 2.
    """
    filled = filled.expand(len(embeddings), -1, -1)
    width = filled.shape[2]
    return (
        filled if width == embeddings.shape[2] else torch.cat([filled, embeddings[..., width:]], 2)
    )


def _filled_up(denoiser: Denoiser, prompts: Sequence[str], share: float) -> Tensor:
    """Embeddings `[B, T, D]` of prompts whose padding is "!", or a first part of it, by the first
    text encoder; each different prompt is encoded once.

    The token ids are changed and not the tokenizer, which others use too.
    """
    pipe, unique = denoiser.pipe, list(dict.fromkeys(prompts))
    vocabulary = pipe.tokenizer.get_vocab()
    if PADDING not in vocabulary:
        raise UserError(f"method clip_pad: the tokenizer has no token '{PADDING}' to fill up with")
    ids = pipe.tokenizer(
        unique,
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    changed = _padding(denoiser, unique, share)
    given = ids.masked_fill(changed, vocabulary[PADDING]).to(denoiser.device)
    with torch.no_grad():
        if denoiser.family == "sdxl":  # which reads the last layer but one, not normalised
            states = pipe.text_encoder(given, output_hidden_states=True).hidden_states
            embeddings = states[-2]
        else:
            embeddings = pipe.text_encoder(given)[0]
    return embeddings[[unique.index(prompt) for prompt in prompts]]
