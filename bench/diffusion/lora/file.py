"""A LoRA file as numbers: its tensors, what its header says, and who it is.

Formats and spellings: kohya-ss/sd-scripts, LyCORIS, peft and diffusers. Pickles are refused:
loading one runs its code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.base.errors import UserError, one_line
from bench.diffusion.tensor_file import read_tensors

# Beginnings of names in files for models that this project does not sample.
TRANSFORMERS = ("transformer.", "lora_transformer_", "diffusion_model.double_blocks", "lora_te3_")


@dataclass(frozen=True)
class LoraFile:
    """Tensors by name, as stored, and the header's texts. `digest` is who the file is: that of its
    tensors, whatever the header says.
    """

    path: Path
    digest: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What diffusers keeps of peft's settings (`lora_adapter_metadata`): r, lora_alpha,
        patterns, each behind the name of its part of the model. Empty where there is none.
        """
        try:
            found = json.loads(self.header.get("lora_adapter_metadata", "{}"))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path} has a header that cannot be read (lora_adapter_metadata:"
                f" {one_line(error)[:80]})"
            ) from error
        if not isinstance(found, dict):
            raise UserError(f"{self.path} has lora_adapter_metadata that are no JSON object")
        return found


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file onto the CPU.

    Raises `UserError`, one line, for a file that is missing, damaged, a pickle, empty, for a model
    of another kind, or that holds NaN or infinity.
    """
    found = read_tensors(path, "LoRA")
    for name in found.tensors:
        if name.startswith(TRANSFORMERS):
            raise UserError(
                f"{path} was made for a flow-matching transformer such as SD 3 or FLUX ({name}),"
                " which is not supported yet (Stable Diffusion 1, 2 and XL are)"
            )
    return LoraFile(path, found.digest, found.tensors, found.header)
