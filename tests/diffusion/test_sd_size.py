"""Runs at the size of Stable Diffusion on a processor, with random weights: slow, and left out
unless asked for.

    BENCH_SLOW=1 python -m pytest tests/diffusion/test_sd_size.py --numprocesses 0

It takes 2.5 GiB of disk, at least 7 GiB of memory and, on two cores, an hour or more.
BENCH_SLOW=256 makes pictures of 256 pixels instead of 512, four times as fast. What each method
costs is printed by tests/benchmarks/sd_size.py, which the builders are from.
"""

import os
from pathlib import Path

import pytest
import torch
from benchmarks.sd_size import METHODS, build, build_pipeline, run_method

from bench.diffusion.model import load_denoiser, stored_as
from bench.suite.load import load_suite
from methods._nemo_layers import value_layers
from methods.wanda import feed_forward_outputs

WANTED = os.environ.get("BENCH_SLOW", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not WANTED, reason="set BENCH_SLOW=1 to run what takes the better part of an hour"
    ),
]
SIDE = int(WANTED) if WANTED not in ("", "1") else 512
BLOCKS = [f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)]
WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("sd"), SIDE)


def test_the_layers_that_methods_edit_are_found_by_their_published_names(suite):
    loaded = load_suite(str(suite))
    unet = load_denoiser(loaded, torch.device("cpu")).pipe.unet
    up = [f"up_blocks.{block}.attentions.{layer}" for block in (1, 2, 3) for layer in range(3)]
    pruned = feed_forward_outputs(unet)
    assert sorted(pruned) == sorted(
        f"{block}.transformer_blocks.0.ff.net.2"
        for block in [*BLOCKS, "mid_block.attentions.0", *up]
    )
    assert (
        len(pruned) == 16 and sum(layer.weight.numel() for layer in pruned.values()) == 49_561_600
    )
    values = value_layers(unet)
    assert list(values) == [
        f"{block}.transformer_blocks.0.attn2.to_v" for block in [*BLOCKS, "mid_block.attentions.0"]
    ]
    assert tuple(layer.out_features for layer in values.values()) == WIDTHS
    assert {layer.in_features for layer in values.values()} == {768}
    assert stored_as(loaded) == {
        "format": "fp16 variant",
        "types": {part: ["F16"] for part in ("unet", "vae", "text_encoder")},
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_two_prompts_and_two_steps_finishes_with_its_peak_memory_in_the_record(
    suite, method
):
    record = run_method(suite, method, [], suite.parent / "runs")
    assert record["status"] == "complete" and record["images"] == {"memorized": 2, "quality": 2}
    assert 3000 < record["environment"]["peak_memory_mib"]["host"] < 16_000
    assert all(
        record["scores"][name]["value"] is not None for name in ("sscd", "clip_score", "fid")
    )
    assert record["cost"]["nfe_per_image"]["value"] >= 4


def test_a_v_prediction_model_of_version_2_loads_with_the_same_layers_by_name(tmp_path, suite):
    build_pipeline(tmp_path / "pipeline", SIDE, version=2)
    for file in suite.parent.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    denoiser = load_denoiser(load_suite(str(tmp_path / suite.name)), torch.device("cpu"))
    assert denoiser.pipe.scheduler.config.prediction_type == "v_prediction"
    assert len(feed_forward_outputs(denoiser.pipe.unet)) == 16
    values = value_layers(denoiser.pipe.unet)
    assert tuple(layer.out_features for layer in values.values()) == WIDTHS and {
        layer.in_features for layer in values.values()
    } == {1024}
    assert (
        len(
            denoiser.pipe.text_encoder.encoder.layers
            if hasattr(denoiser.pipe.text_encoder, "encoder")
            else denoiser.pipe.text_encoder.text_model.encoder.layers
        )
        == 23
    )
