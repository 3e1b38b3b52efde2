"""What methods find by name in the UNets of Stable Diffusion, built on the meta device from their
published configurations.
"""

from __future__ import annotations

import pytest
import torch
from benchmarks.flops import MODELS

from methods._nemo_layers import value_layers
from methods.wanda import feed_forward_outputs


@pytest.fixture(params=sorted(MODELS))
def unet(request):
    from diffusers import UNet2DConditionModel

    config, side = MODELS[request.param]
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=side, **config)


def test_wanda_prunes_sixteen_feed_forward_layers(unet):
    layers = feed_forward_outputs(unet)
    blocks = [f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)]
    blocks += [
        "mid_block.attentions.0",
        *(f"up_blocks.{block}.attentions.{layer}" for block in range(1, 4) for layer in range(3)),
    ]
    assert (
        set(layers) == {f"{block}.transformer_blocks.0.ff.net.2" for block in blocks}
        and len(layers) == 16
    )
    assert sum(layer.weight.numel() for layer in layers.values()) == 49_561_600


def test_nemo_looks_at_seven_value_layers(unet):
    layers = value_layers(unet)
    blocks = [
        f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)
    ] + ["mid_block.attentions.0"]
    assert list(layers) == [f"{block}.transformer_blocks.0.attn2.to_v" for block in blocks]
    assert [layer.out_features for layer in layers.values()] == [
        320,
        320,
        640,
        640,
        1280,
        1280,
        1280,
    ]
