"""Who a LoRA file is: its tensors, and what peft's entry of its header says of their scale.

Kohya's files have alphas among their tensors. Those of peft and diffusers state ranks and alphas in
the header alone, so that two files with the same tensors can be two changes of a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bench.base.errors import UserError, one_line
from bench.base.safetensors_header import read_header
from bench.suite.embeddings import weights_digest

PEFT = "lora_adapter_metadata"  # the entry, as diffusers writes it: a JSON object
# The settings in it that decide what the tensors mean, each behind the name of its part of the
# model, as in `unet.r`.
DECIDING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")


def peft_settings(file: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """What peft's entry says, by the texts of a header; empty where there is none.

    Raises `UserError`, which names the file, for an entry that is no JSON object.
    """
    try:
        found = json.loads(texts.get(PEFT, "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} has a header that cannot be read ({PEFT}: {one_line(error)[:80]})"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{file} has {PEFT} that are no JSON object")
    return found


def settings_named(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The settings of these names, of every part of the model, in the order of their parts."""
    return {name: settings[name] for name in sorted(settings) if name.partition(".")[2] in names}


def digest_with_scale(tensors: str, settings: Mapping[str, Any]) -> str:
    """The digest of a LoRA file by that of its tensors and by peft's settings, 64 hex digits; that
    of the tensors where no setting decides a scale.
    """
    # Patterns keep their order: the first that matches a module counts.
    deciding = settings_named(settings, DECIDING)
    if not deciding:
        return tensors
    return hashlib.sha256(f"{tensors}\0{json.dumps(deciding)}".encode()).hexdigest()


def lora_digest(file: Path) -> str:
    """The same of a file on the disk.

    Raises `UserError` for another file, and for a damaged entry of peft's.
    """
    tensors = weights_digest(file)
    return digest_with_scale(tensors, peft_settings(file, read_header(file).texts))
