"""From prompts to what the UNet reads of them: the one place where text encoders are asked.

A text encoder of CLIP reads 77 tokens, a beginning, 75 of the prompt and an end. Longer prompts are
read in chunks, as kohya-ss/sd-scripts trains and as A1111 and ComfyUI generate: each chunk of 75
tokens gets a beginning and an end of its own and is encoded by itself, and what comes out is put
behind each other, 77 rows a chunk. The empty prompt has as many chunks as every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.families import family_of_pipeline
from bench.diffusion.prompt_tokenizer import PromptTokenizer, as_prompt_tokenizer


def encoded(
    pipe: Any, prompts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Embeddings `[B, T, D]` of prompts, and of Stable Diffusion XL what its second text encoder
    says of each as a whole, `[B, P]`: of its first chunk, as kohya's scripts and A1111 have it.
    """
    with torch.no_grad():
        if isinstance(getattr(pipe, "tokenizer", None), PromptTokenizer):
            return _in_chunks(pipe, prompts, device)
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


def read_in_chunks(pipe: Any, chunks: int) -> None:
    """Have a pipeline read prompts in so many chunks."""
    if chunks > 1:
        for name in ("tokenizer", "tokenizer_2"):
            if getattr(pipe, name, None) is not None:
                as_prompt_tokenizer(getattr(pipe, name)).chunks = chunks


def most_tokens(tokenizer: Any) -> int:
    """How many tokens of a prompt are read at most, one beginning and one end among them."""
    ends: int = tokenizer.num_special_tokens_to_add()
    chunks: int = getattr(tokenizer, "chunks", 1)
    return chunks * (int(tokenizer.model_max_length) - ends) + ends


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """The tokens of prompts by chunk, cut and filled up, int64 `[B, chunks, T]`: each chunk with
    the beginning and the end of a text, filled up behind its end.
    """
    width, chunks = int(tokenizer.model_max_length), getattr(tokenizer, "chunks", 1)
    room, rows = width - tokenizer.num_special_tokens_to_add(), []
    found = tokenizer(list(prompts), truncation=True, max_length=most_tokens(tokenizer)).input_ids
    for first, *words, last in found:
        parts = [words[start : start + room] for start in range(0, chunks * room, room)]
        whole = [[first, *part, last] for part in parts]
        rows.append([part + [tokenizer.pad_token_id] * (width - len(part)) for part in whole])
    return torch.tensor(rows)


def _in_chunks(
    pipe: Any, prompts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    xl = family_of_pipeline(pipe) == "sdxl"
    parts = [(pipe.tokenizer, pipe.text_encoder)]
    parts += [(pipe.tokenizer_2, pipe.text_encoder_2)] if xl else []
    found, pooled = [], None
    for tokenizer, encoder in parts:
        ids = token_ids(tokenizer, prompts).to(device)
        given = encoder(ids.flatten(0, 1), output_hidden_states=xl)
        # XL reads the last layer but one, not normalised
        states = given.hidden_states[-2] if xl else given[0]
        found.append(states.unflatten(0, ids.shape[:2]).flatten(1, 2))
        pooled = given[0].unflatten(0, ids.shape[:2])[:, 0] if xl else None
    return torch.cat([states.to(found[-1]) for states in found], 2), pooled
