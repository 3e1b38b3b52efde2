"""Textual inversions (Gal et al. 2023, arXiv 2208.01618): words of their own, put into a model's
tokenizers and text encoders.

A file holds one vector or several for each text encoder: `{token: tensor}` as diffusers writes it,
`emb_params` as kohya-ss/sd-scripts does, `clip_l` and `clip_g` for Stable Diffusion XL. A word `t`
of n vectors is the tokens `t`, `t_1`, ... The tokenizer itself reads `t` as all of them
(`bench.diffusion.prompt_tokenizer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.base.errors import UserError, visible
from bench.diffusion.families import CALLED, family_of_pipeline
from bench.diffusion.lora.merge import WIDTHS
from bench.diffusion.prompt_tokenizer import as_prompt_tokenizer, is_word
from bench.diffusion.tensor_file import read_tensors
from bench.suite.embeddings import BY_ENCODER, token_of

END_OF_WORD = "</w>"  # what CLIP's vocabulary writes behind a word that is one token
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


@dataclass(frozen=True)
class Embedding:
    """A word `token` with vectors `[n, D]` by text encoder, as many in each; `digest` is who the
    file is.
    """

    path: Path
    digest: str
    token: str
    vectors: Mapping[str, Tensor]

    @property
    def tokens(self) -> list[str]:
        """What each vector is called in a vocabulary."""
        count = len(next(iter(self.vectors.values())))
        return [self.token, *(f"{self.token}_{number}" for number in range(1, count))]


def read_embedding(path: Path, token: str = "") -> Embedding:
    """Read a textual inversion onto the CPU; `token` comes before the word that the file says.

    Raises `UserError`, one line, for a file that cannot be read (`read_tensors`) and for one that
    holds something else.
    """
    file = read_tensors(path, "embedding")
    by_encoder = {
        BY_ENCODER[name]: value for name, value in file.tensors.items() if name in BY_ENCODER
    }
    if not by_encoder and len(file.tensors) == 1:
        by_encoder = {"text_encoder": next(iter(file.tensors.values()))}
    if len(by_encoder) != len(file.tensors) or "text_encoder" not in by_encoder:
        raise UserError(
            f"{path} is no textual inversion: it holds {len(file.tensors)} tensors, first"
            f" {visible(min(file.tensors))[:80]}, and one of them is expected, or clip_l and clip_g"
        )
    vectors = {part: _as_rows(path, value) for part, value in by_encoder.items()}
    if len(counts := {len(rows) for rows in vectors.values()}) > 1:
        raise UserError(
            f"{path} holds {' and '.join(map(str, sorted(counts)))} vectors for two text encoders,"
            " which must be as many"
        )
    return Embedding(path, file.digest, token_of(path, file.tensors, token), vectors)


def insert(pipe: Any, embeddings: Sequence[Embedding]) -> None:
    """Put words into a pipeline's tokenizers and text encoders, in place; everything else that
    these know stays as it was.

    Raises `UserError` for vectors of another model, and for a word that a tokenizer has already.
    """
    for one in embeddings:
        _refuse_other_model(pipe, one)
        for part, vectors in one.vectors.items():
            _add(getattr(pipe, TOKENIZERS[part]), getattr(pipe, part), one, vectors)
    if embeddings:  # diffusers puts tokens in for a word by another rule, into other words too
        pipe.maybe_convert_prompt = _unchanged


def _unchanged(prompt: Any, tokenizer: Any) -> Any:
    return prompt


def _as_rows(path: Path, value: Tensor) -> Tensor:
    rows = value[None] if value.ndim == 1 else value
    if rows.ndim != 2 or not rows.numel() or not rows.is_floating_point():
        raise UserError(
            f"{path} is no textual inversion: its vectors have the shape {tuple(value.shape)} and"
            f" the type {str(value.dtype).removeprefix('torch.')}"
        )
    return rows.float()


def _refuse_other_model(pipe: Any, one: Embedding) -> None:
    family = family_of_pipeline(pipe)
    parts = ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",)
    if set(one.vectors) != set(parts):
        made = "two text encoders (clip_l and clip_g)" if len(parts) == 1 else "one text encoder"
        raise UserError(
            f"{one.path} was made for a model with {made}, and the model is {CALLED[family]}"
        )
    for part, vectors in one.vectors.items():
        width, own = vectors.shape[1], getattr(pipe, part).get_input_embeddings().weight.shape[1]
        if width != own:
            called = f" ({WIDTHS[width]})" if width in WIDTHS else ""
            raise UserError(f"{one.path} was made for width {width}{called}, the model has {own}")


def _add(tokenizer: Any, encoder: nn.Module, one: Embedding, vectors: Tensor) -> None:
    from transformers import AddedToken

    vocabulary = {word.lower() for word in tokenizer.get_vocab()}
    known = [
        token
        for token in one.tokens
        if token.lower() in vocabulary or f"{token.lower()}{END_OF_WORD}" in vocabulary
    ]
    if known:
        raise UserError(
            f"{one.path}: the model's tokenizer has the token '{visible(known[0])[:80]}' already;"
            " give the embedding another one (rename the file, or token = in [[model.embeddings]])"
        )
    if len(one.tokens) > tokenizer.model_max_length - 2:
        raise UserError(
            f"{one.path} holds {len(one.tokens)} vectors, and a prompt of the model has room for"
            f" {tokenizer.model_max_length - 2} tokens"
        )
    as_prompt_tokenizer(tokenizer)
    tokenizer.add_tokens([AddedToken(token, single_word=is_word(token)) for token in one.tokens])
    places = torch.tensor([tokenizer.convert_tokens_to_ids(token) for token in one.tokens])
    _set_rows(encoder, places, vectors)
    # Some files state an end token of older releases, and the place of the largest number is then
    # taken for the end of the text: with new tokens that is one of them.
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) is not None:
            module.eos_token_id = tokenizer.eos_token_id
    if len(one.tokens) > 1:
        tokenizer.several[one.token.lower()] = " ".join(one.tokens)


@torch.no_grad()
def _set_rows(encoder: Any, places: Tensor, vectors: Tensor) -> None:
    """Input vectors of some tokens; the table grows where it has no such rows."""
    table = encoder.get_input_embeddings()
    own = table.weight
    missing = int(places.max()) + 1 - len(own)
    if missing > 0:
        grown = torch.cat([own, own.new_zeros(missing, own.shape[1])])
        table.weight = nn.Parameter(grown, requires_grad=own.requires_grad)
        table.num_embeddings = encoder.config.vocab_size = len(grown)
    table.weight[places.to(own.device)] = vectors.to(own)
