"""How many operations one row through the UNets of Stable Diffusion costs: `tflop` in
bench/assets/catalogue.toml, from which a plan's GPU-hours follow.

    python tests/benchmarks/flops.py

The UNets are built on the meta device from their published configurations: nothing is downloaded,
no memory is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

COMMON = dict(  # noqa: C408
    in_channels=4,
    out_channels=4,
    layers_per_block=2,
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
ONE: dict[str, Any] = dict(COMMON, cross_attention_dim=768, attention_head_dim=8)
TWO: dict[str, Any] = dict(
    COMMON, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True
)
MODELS = {"sd14, sd15": (ONE, 64), "sd20, sd21": (TWO, 96), "sd20_base, sd21_base": (TWO, 64)}


def main() -> None:
    from diffusers import UNet2DConditionModel

    for name, (config, side) in MODELS.items():
        with torch.device("meta"):
            unet = UNet2DConditionModel(sample_size=side, **config)
            latents, text = (
                torch.empty(1, 4, side, side),
                torch.empty(1, 77, config["cross_attention_dim"]),
            )
            with FlopCounterMode(display=False) as counter:
                unet(latents, torch.ones(1), encoder_hidden_states=text)
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        print(
            f"{name}: {parameters / 1e6:.0f} M parameters, {counter.get_total_flops() / 1e12:.3f} x"
            f" 10^12 operations a row at {8 * side} pixels"
        )


if __name__ == "__main__":
    main()
