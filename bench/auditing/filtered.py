"""What a filter of a fine-tuning leaves, as a LoRA file: what an audit tries as `baf`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from bench.auditing.asked import Asked
from bench.auditing.suites import lora_tables, model_side, model_table, named
from bench.base.errors import UserError
from bench.base.parameters import configure
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.header import header_of_new_factors
from bench.diffusion.lora.write import write_file
from bench.diffusion.model import load_base, load_denoiser
from bench.registry import registry
from bench.suite.load import load_suite
from bench.suite.schema import ModelSettings

FILTER = "baf"


def filtered_lora(
    asked: Asked, parameters: Mapping[str, Any], strip: bool, device: torch.device
) -> str:
    """Write to `asked.out` what the filter leaves of `asked.loras`, or of a model that was
    fine-tuned from `asked.base` as a whole, and return who the file is: the sha256 of its tensors.

    The header is that of the first file, as far as it stays true; `strip` as in `kept_header`.
    Raises `UserError` for whatever is wrong with an input, and where nothing is left.
    """
    if bool(asked.loras) == bool(asked.base):
        raise UserError(
            "name what is filtered: one LoRA file or several, or --model with --base for a model"
            " that was fine-tuned as a whole"
        )
    if asked.base and asked.model is None:
        raise UserError("--base says what a model was fine-tuned from: name that with --model")
    entry = registry.find("method", FILTER)
    method: Any = configure("method", entry.name, entry.load(), parameters)
    read = [read_lora(one.file) for one in asked.loras]
    like = load_suite(asked.suite_like)
    model_side(asked, like)  # whatever is wrong with the model is said before it is loaded
    table = model_table(asked, like, on_gpu=False)
    if asked.base:
        table["base"] = str(named(asked.base))
    elif asked.loras:
        table["loras"] = lora_tables(asked.loras)
    settings = like.settings.model_copy(update={"model": ModelSettings.model_validate(table)})
    suite = replace(like, settings=settings)
    model = load_denoiser(suite, device)
    base = load_base(suite.needed_base(FILTER), model)
    digest: str = method.write(asked.out, model, base)
    if read:
        # the method writes factors alone; what its source says of the training is put back
        kept = header_of_new_factors(read[0].header, strip)
        write_file(asked.out, read_lora(asked.out).tensors, kept)
    return digest
