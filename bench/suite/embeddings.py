"""The words that textual inversions add to a model, told by the names in a file's header."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from bench.base.errors import UserError, visible
from bench.base.safetensors_header import read_header, refuse_pickled_tensors, tensors_digest

# What files call the vectors themselves: kohya-ss/sd-scripts and, by text encoder, those of Stable
# Diffusion XL. Any other name is the word that stands for them, as diffusers writes it.
ONE_ENCODER = "emb_params"
BY_ENCODER = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
LONGEST = 100  # characters of a word


def weights_digest(file: Path) -> str:
    """The sha256 of a file's tensors, whatever its header says: who a textual inversion is, and
    most LoRAs (`bench.suite.lora_files`).

    Raises `UserError` for another file.
    """
    refuse_pickled_tensors(file)
    try:
        return tensors_digest(file)
    except ValueError as error:
        raise UserError(f"{file} is no readable safetensors file: {error}") from error


def token_of(file: Path, names: Iterable[str], given: str = "") -> str:
    """The word that stands for a file's vectors, by the names of its tensors; `given` comes before
    what the file says.

    Raises `UserError` for a word with a space in it, and for none.
    """
    stated = [name for name in names if name != ONE_ENCODER and name not in BY_ENCODER]
    token = given or (stated[0] if len(stated) == 1 else file.stem)
    if not token or len(token) > LONGEST or re.search(r"\s", token) or not token.isprintable():
        raise UserError(
            f"{file}: '{visible(token)[:LONGEST]}' cannot be a word of a prompt; rename the file,"
            " or give token = a word without spaces in [[model.embeddings]]"
        )
    return token


def token_in(file: Path, given: str = "") -> str:
    """The same, with the names read from the file's header."""
    refuse_pickled_tensors(file)
    try:
        names = read_header(file).tensors
    except ValueError as error:
        raise UserError(f"{file} is no readable safetensors file: {error}") from error
    return token_of(file, names, given)
