"""A LoRA file of factors: in the spelling of diffusers and peft, which kohya's users can load too.

Nothing in it states an alpha: without one every reader takes the product of the factors as it is.
What no factors hold stands there whole, as LyCORIS writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically
from bench.base.safetensors_header import with_metadata
from bench.suite.lora_files import lora_digest

TEXT_MODEL = "text_model."  # of a text encoder's paths, which transformers 5 dropped


def write_lora(
    path: Path,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    whole: Mapping[str, Tensor] | None = None,
) -> str:
    """Write changes of a pipeline's weights as a LoRA file in float32, and return who it is: the
    sha256 of its tensors.

    `factors` by module, with the part of the pipeline before its path (`unet.down_blocks.0...`): up
    `[out, r]` or `[out, r, 1, 1]` and down `[r, in]` or `[r, in, 1, 1]`, whose product is added to
    the weight. `whole` by parameter, the same with `.weight` or `.bias` behind: what is added to
    it. `bench.diffusion.lora` reads both back. Raises `UserError` where there is nothing to write,
    for another parameter, and where the file cannot be written.
    """
    tensors = dict[str, Tensor]()
    for module, (up, down) in factors.items():
        tensors[f"{_spelled(module)}.lora_B.weight"] = up
        tensors[f"{_spelled(module)}.lora_A.weight"] = down
    for parameter, change in (whole or {}).items():
        module, _, kind = parameter.rpartition(".")
        if kind not in ("weight", "bias"):
            raise UserError(f"no LoRA file can hold a change of {parameter}")
        tensors[f"{_spelled(module)}.{'diff' if kind == 'weight' else 'diff_b'}"] = change
    if not tensors:
        raise UserError("there is no change of a weight to write into a LoRA file")
    return write_file(path, {name: one.float() for name, one in tensors.items()}, {})


def write_file(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Write named tensors, each of its own type, with texts in the header, and return who the file
    is (`lora_digest`).

    Raises `UserError` where it cannot be written.
    """
    given = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    try:
        write_atomically(path, with_metadata(save(given), {"format": "pt"} | dict(header)))
        return lora_digest(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {one_line(error)[:120]}") from error


def _spelled(module: str) -> str:
    """The path as files of diffusers have it, under every version of transformers."""
    part, _, path = module.partition(".")
    if part.startswith("text_encoder") and not path.startswith(TEXT_MODEL):
        path = TEXT_MODEL + path
    return f"{part}.{path}"
