"""Loading networks that turn pictures into features, in the file formats their authors publish."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.errors import UserError, one_line


def load_torchscript(path: Path, device: Any) -> Any:
    """A TorchScript file in eval mode on a device. Raises `UserError` when it is truncated or no TorchScript."""
    try:
        with warnings.catch_warnings():
            # The official SSCD and Inception files are TorchScript, whatever torch now recommends for new ones.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path} is no readable TorchScript file ({one_line(error)[:100]}); fetch or build it again") from error


def unit_pixels(picture: np.ndarray) -> torch.Tensor:
    """uint8 `[H, W, 3]` to float32 `[3, H, W]` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 255.0
