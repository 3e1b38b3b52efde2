"""Padding of the prompt that says less about a memorized image: other padding tokens, and
embeddings set to zero (Kim and No, CVPR findings 2026, arXiv 2605.02908).

Stable Diffusion 1 fills the prompt up with end tokens, whose embeddings repeat what the end of the
text says about the whole of it, and so carry a memorized image better than the words do. The paper
fills up with "!" instead, as Stable Diffusion 2 does, and sets the embedding of the true end token
to zero (`variant=eot`), or leaves that out (`pad`), or keeps the padding and sets its first part to
zero (`ratio`).

The released code changes the tokenizer and leaves it changed, so its empty prompt is filled up with
"!" too (`null=same`); here the tokenizer is not touched at all. The published similarities are to
the picture that the same noise gives without the mitigation, and not to a training picture.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench import Denoiser, Method, Request, State, UserError, Where

PADDING = "!"  # the first token of CLIP's vocabulary


class ClipPad(Method):
    """Fill the prompt up with "!" and take the end token's embedding away (Kim and No)."""

    where: ClassVar[Where] = "embedding"
    paper: ClassVar[str] = "Kim and No 2026, arXiv:2605.02908"
    neutral: ClassVar[dict[str, Any] | None] = {"variant": "ratio", "share": 0}

    variant: Literal["eot", "pad", "ratio"] = Field(
        "eot",
        description=(
            "eot: padding is '!' and the end token's embedding zero; pad: padding is '!', which"
            " does nothing where it was so before, as in Stable Diffusion 2; ratio: the first part"
            " of the padding's embeddings is zero"
        ),
    )
    share: float = Field(
        0.7, ge=0, le=1, description="of the padding that is set to zero; variant=ratio only"
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
        if self.variant == "ratio" and not self.share:
            return request
        ends = denoiser.lengths(request.prompts) - 1
        tokens = torch.arange(request.embeddings.shape[1])
        if self.variant == "ratio":
            # in double precision, as the code cuts it
            most = ((len(tokens) - 1 - ends).double() * self.share).long()
            after = tokens - 1 - ends[:, None]
            zero = (after >= 0) & (after < most[:, None])
            return request.replace(embeddings=_zeroed(request.embeddings, zero))
        embeddings, null = request.embeddings, request.null_embeddings
        if denoiser.pipe.tokenizer.pad_token != PADDING:
            if not request.handed_in:  # an embedding has no padding that could be another
                embeddings = _filled_up(denoiser, request.prompts)
            if self.null == "same":
                null = _filled_up(denoiser, ("",)).expand_as(null)
        if self.variant == "eot":
            embeddings = _zeroed(embeddings, tokens == ends[:, None])
        return request.replace(embeddings=embeddings, null_embeddings=null)


def _zeroed(embeddings: Tensor, tokens: Tensor) -> Tensor:
    """Embeddings `[B, T, D]` with zero at some tokens, bool `[B, T]`."""
    return embeddings.masked_fill(tokens.to(embeddings.device)[..., None], 0)


def _filled_up(denoiser: Denoiser, prompts: tuple[str, ...]) -> Tensor:
    """Embeddings `[B, T, D]` of prompts whose padding is "!", each different prompt encoded once.

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
    beyond = torch.arange(ids.shape[1]) >= denoiser.lengths(unique)[:, None]
    with torch.no_grad():
        embeddings = pipe.text_encoder(
            ids.masked_fill(beyond, vocabulary[PADDING]).to(denoiser.device)
        )[0]
    return embeddings[[unique.index(prompt) for prompt in prompts]]
