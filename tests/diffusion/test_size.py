"""Pictures that are no squares: our sampler against diffusers' own height and width, the sizes that
a model of Stable Diffusion XL is told, suites, and what is refused.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.model import load_denoiser
from bench.running.prepare import prepare
from bench.running.sampling import sample
from bench.suite.load import load_suite
from bench.suite.schema import protocol
from bench.testbed.tiny import build_tiny_xl_pipeline
from conftest import CAPTIONS, SUITE, bench, build_tiny_pipeline

CPU = torch.device("cpu")
PROMPTS, SEEDS = CAPTIONS[:2], [11, 12]
SIZES = [(48, 32), (24, 40), (32, 32)]  # height and width


def drawn(denoiser, request):
    return denoiser.decode(sample(denoiser, request, Method(), {})).astype(int)


def theirs(pipe, size, steps=5):
    """diffusers draws its own noise from the same generators."""
    images = pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=5.0,
        height=size[0],
        width=size[1],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
    ).images
    return (images * 255).round().astype(int)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_pictures_are_those_of_diffusers_at_this_height_and_width(family, size):
    pipe = build_tiny_pipeline() if family == "sd" else build_tiny_xl_pipeline()
    with torch.no_grad():  # so that what the model is told shows in the picture
        for name, weight in pipe.unet.named_parameters():
            weight.mul_(12 if "attn2.to_v" in name or "add_embedding" in name else 1)
    denoiser = Denoiser(pipe, 5, 5.0, size=size)
    request = denoiser.request(PROMPTS, SEEDS)
    ours = drawn(denoiser, request)
    assert ours.shape == (2, *size, 3)
    assert np.abs(ours - theirs(pipe, size)).max() <= 1
    # The bound is not vacuous.
    assert np.abs(ours - drawn(denoiser, request.replace(guidance_scale=1.0))).max() > 1
    if family == "sdxl":
        assert request.time_ids.tolist() == [[*size, 0, 0, *size]] * 2
        told = request.replace(time_ids=torch.full_like(request.time_ids, 8))
        assert np.abs(ours - drawn(denoiser, told)).max() > 1


def test_the_noise_of_a_square_is_what_it_was():
    pipe = build_tiny_pipeline()
    plain, said = Denoiser(pipe, 2, 5.0), Denoiser(pipe, 2, 5.0, size=(32, 32))
    assert torch.equal(plain.initial_latents(SEEDS), said.initial_latents(SEEDS))
    wide = Denoiser(pipe, 2, 5.0, size=(16, 48)).initial_latents(SEEDS)
    for row, seed in zip(wide, SEEDS, strict=True):
        own = torch.randn(row.shape, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(row, own)


def suite_of(tmp_path, tiny_folder, lines):
    for file in tiny_folder.iterdir():
        if not (tmp_path / file.name).exists():
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "mine.toml").write_text(
        SUITE.replace("side = 32\nbatch", f"side = 32\n{lines}\nbatch")
    )
    return load_suite(str(tmp_path / "mine.toml"))


def test_a_suite_says_height_and_width_and_without_them_is_as_before(tmp_path, tiny_folder):
    plain = suite_of(tmp_path, tiny_folder, "")
    assert "size" not in protocol(plain.settings)["model"]
    fingerprint = plain.fingerprint
    wide = suite_of(tmp_path, tiny_folder, "size = [32, 48]")
    assert wide.fingerprint != fingerprint
    assert wide.generation["size"] == [32, 48]
    denoiser = load_denoiser(wide, CPU)
    assert drawn(denoiser, denoiser.request(PROMPTS, SEEDS)).shape == (2, 32, 48, 3)
    assert suite_of(tmp_path, tiny_folder, "").fingerprint == fingerprint


def test_a_run_judges_pictures_that_are_no_squares(tmp_path, tiny_folder):
    suite_of(tmp_path, tiny_folder, "size = [24, 40]")
    words = ["run", "--suite", tmp_path / "mine.toml", "--method", "none"]
    words += ["--records", tmp_path / "records", "--store", tmp_path / "store", "--json"]
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "records").rglob("*.json")
    told = json.loads(record.read_text())
    assert told["status"] == "complete"
    assert all(told["scores"][name]["value"] is not None for name in ("sscd", "clip_score", "fid"))


def test_what_cannot_be_made_is_one_line(tmp_path, tiny_folder):
    with pytest.raises(UserError, match="33 x 32 pixels .* multiples of 4") as error:
        load_denoiser(suite_of(tmp_path, tiny_folder, "size = [33, 32]"), CPU)
    assert "\n" not in str(error.value)
    for wrong in ("[0, 32]", "32", "[32]"):
        with pytest.raises(UserError, match="size") as error:
            suite_of(tmp_path, tiny_folder, f"size = {wrong}")
        assert "\n" not in str(error.value)
    wide = suite_of(tmp_path, tiny_folder, "size = [32, 48]")
    with pytest.raises(UserError, match="siss learns from training pictures, which are cut to sq"):
        prepare(wide, "siss", {}, tmp_path / "store", CPU)
    text = SUITE.replace("side = 32\nbatch", "side = 32\nsize = [32, 48]\nbatch")
    (tmp_path / "mine.toml").write_text(f"{text}\n[attacks.clique_extraction]\n")
    with pytest.raises(UserError, match="attacks compare squares"):
        load_suite(str(tmp_path / "mine.toml"))
