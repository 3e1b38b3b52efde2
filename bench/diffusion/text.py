"""From prompts to what the UNet reads of them: the one place where a text encoder is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.families import family_of_pipeline
from bench.diffusion.textual_inversion import Expanding


def encoded(
    pipe: Any, prompts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Embeddings `[B, T, D]` of prompts, and of Stable Diffusion XL what its second text encoder
    says of each as a whole, `[B, P]`.
    """
    with torch.no_grad():
        if isinstance(getattr(pipe, "tokenizer", None), Expanding):
            return _encoded_here(pipe, prompts, device)
        if family_of_pipeline(pipe) == "sdxl":
            embeddings, _, pooled, _ = pipe.encode_prompt(
                list(prompts),
                device=device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            return embeddings, pooled
        embeddings, _ = pipe.encode_prompt(list(prompts), device, 1, False)
        return embeddings, None


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """The tokens of prompts, cut and filled up, int64 `[B, T]`."""
    found: Tensor = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return found


def _encoded_here(
    pipe: Any, prompts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """As diffusers encodes prompts. It would put the tokens of a word in a second time, by a rule
    of its own.
    """
    if family_of_pipeline(pipe) == "sd":
        return pipe.text_encoder(token_ids(pipe.tokenizer, prompts).to(device))[0], None
    first, second = (
        encoder(token_ids(tokenizer, prompts).to(device), output_hidden_states=True)
        for tokenizer, encoder in (
            (pipe.tokenizer, pipe.text_encoder),
            (pipe.tokenizer_2, pipe.text_encoder_2),
        )
    )
    states = [one.hidden_states[-2].to(second.text_embeds) for one in (first, second)]
    return torch.cat(states, 2), second.text_embeds
