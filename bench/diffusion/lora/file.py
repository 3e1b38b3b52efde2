"""A LoRA file as numbers: its tensors, what its header says, and who it is.

Formats and spellings: kohya-ss/sd-scripts, LyCORIS, peft and diffusers. Pickles are refused:
loading one runs its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.base.errors import UserError
from bench.diffusion.tensor_file import read_tensors
from bench.suite.lora_files import digest_with_scale, peft_settings

# Beginnings of names in files for models that this project does not sample.
TRANSFORMERS = ("transformer.", "lora_transformer_", "diffusion_model.double_blocks", "lora_te3_")


@dataclass(frozen=True)
class LoraFile:
    """Tensors by name, as stored, and the header's texts. `digest` is who the file is: its tensors
    and their scale, whatever else the header says (`bench.suite.lora_files`).
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
        return peft_settings(self.path, self.header)


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file onto the CPU.

    Raises `UserError`, one line, for a file that is missing, damaged (also in peft's entry of the
    header), a pickle, empty, for a model of another kind, or that holds NaN or infinity.
    """
    found = read_tensors(path, "LoRA")
    for name in found.tensors:
        if name.startswith(TRANSFORMERS):
            raise UserError(
                f"{path} was made for a flow-matching transformer such as SD 3 or FLUX ({name}),"
                " which is not supported yet (Stable Diffusion 1, 2 and XL are)"
            )
    digest = digest_with_scale(found.digest, peft_settings(path, found.header))
    return LoraFile(path, digest, found.tensors, found.header)
