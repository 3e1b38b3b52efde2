"""A tiny model that behaves as if it remembered."""

from typing import Any

import torch

from conftest import build_tiny_pipeline
from methods._nemo_layers import value_layers


def recalling_pipeline() -> Any:
    """A random model for which text weighs a hundred times more, and the noise it sees a tenth."""
    pipe = build_tiny_pipeline(coarse_attention=True)
    with torch.no_grad():
        for layer in value_layers(pipe.unet).values():
            layer.weight *= 100
        pipe.unet.conv_in.weight /= 10
        pipe.unet.conv_out.weight *= 30
    return pipe
