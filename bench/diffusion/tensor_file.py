"""A small safetensors file that changes a model (a LoRA, a textual inversion), read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.base.errors import UserError, one_line
from bench.base.safetensors_header import refuse_pickled_tensors, tensors_digest


@dataclass(frozen=True)
class TensorFile:
    """Tensors by name, as stored, on the CPU, and the header's texts. `digest` is that of the
    tensors, whatever the header says.
    """

    path: Path
    digest: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]


def read_tensors(path: Path, what: str) -> TensorFile:
    """Read a file; `what` it should hold, such as "LoRA", is for errors.

    Raises `UserError`, one line, for a file that is missing, damaged, a pickle, empty, or that
    holds NaN or infinity.
    """
    refuse_pickled_tensors(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, which may hold several {what}s: name one file of it")
    if not path.is_file():
        raise UserError(f"there is no {what} file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        digest = tensors_digest(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is no readable safetensors file: {one_line(error)[:120]}"
        ) from error
    if not tensors:
        raise UserError(f"{path} holds no tensor")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise UserError(f"{path} holds NaN or infinity in {name}")
    return TensorFile(path, digest, tensors, header)
