"""Every scheduler that a suite may name, with every setting of its noise levels, gives what the
pipeline of diffusers gives, for models of both kinds; or it is refused in one line.
"""

from __future__ import annotations

import itertools

import diffusers
import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.model import load_pipeline
from bench.running.sampling import sample
from bench.suite.load import load_suite
from conftest import CAPTIONS, SUITE, build_tiny_pipeline

PROMPTS, SEEDS, STEPS, SCALE = CAPTIONS[:2], [11, 12], 7, 4.0
KARRAS = {
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
}
ZERO_SNR = {
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
}
GRID = [
    (name, kind, spacing, karras, zero)
    for name, kind, spacing, karras, zero in itertools.product(
        ("DDIMScheduler", "PNDMScheduler", *sorted(KARRAS)),
        ("epsilon", "v_prediction"),
        ("leading", "linspace", "trailing"),
        (False, True),
        (False, True),
    )
    if (not karras or name in KARRAS) and (not zero or name in ZERO_SNR)
]


def pipeline(name, kind, spacing, karras, zero):
    pipe = build_tiny_pipeline(prediction_type=kind)
    settings = {"timestep_spacing": spacing}
    if karras:
        settings["use_karras_sigmas"] = True
    if zero:
        settings["rescale_betas_zero_snr"] = True
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **settings)
    return pipe


@pytest.mark.parametrize("name, kind, spacing, karras, zero", GRID)
def test_pictures_are_those_of_diffusers_or_the_setting_is_refused(
    name, kind, spacing, karras, zero
):
    pipe = pipeline(name, kind, spacing, karras, zero)
    try:
        denoiser = Denoiser(pipe, STEPS, SCALE)
    except UserError as error:
        assert zero and spacing != "leading" and spacing in str(error)
        assert "rescale_betas_zero_snr" in str(error) and "\n" not in str(error)
        return
    request = denoiser.request(PROMPTS, SEEDS)
    ours = denoiser.decode(sample(denoiser, request, Method(), {}))
    theirs = pipe(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        latents=request.latents.clone(),
        output_type="np",
    ).images
    denoiser.close()
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_no_scheduler_of_the_grid_is_refused_without_zero_terminal_snr(kind):
    for name, spacing, karras in itertools.product(
        ("DDIMScheduler", "PNDMScheduler", *sorted(KARRAS)),
        ("leading", "linspace", "trailing"),
        (False, True),
    ):
        if not karras or name in KARRAS:
            Denoiser(pipeline(name, kind, spacing, karras, False), STEPS, SCALE).close()


@pytest.mark.parametrize("name", sorted(KARRAS | {"DDIMScheduler"}))
def test_later_noise_is_of_unit_variance_as_the_model_sees_it(name):
    denoiser = Denoiser(pipeline(name, "epsilon", "leading", False, False), STEPS, SCALE)
    noise = denoiser.initial_latents(range(40))
    for index in (0, 1, 3):
        scaled, timestep = denoiser.start(noise, index)
        assert scaled.std() == pytest.approx(1, abs=0.05)
        assert timestep == denoiser.timesteps[index]
    denoiser.close()


def test_a_scheduler_that_draws_noise_of_its_own_is_refused(tiny_folder, tmp_path):
    import json
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "suite")
    folder = tmp_path / "suite"
    file = folder / "pipeline/scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    config |= {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    file.write_text(json.dumps(config))
    index = folder / "pipeline/model_index.json"
    parts = json.loads(index.read_text())
    parts["scheduler"] = ["diffusers", "DPMSolverMultistepScheduler"]
    index.write_text(json.dumps(parts))
    text = SUITE.replace(
        'path = "pipeline"', 'path = "pipeline"\nscheduler = "DPMSolverMultistepScheduler"'
    )
    (folder / "tiny.toml").write_text(text)
    with pytest.raises(UserError, match=r"algorithm_type 'sde-dpmsolver\+\+'.*noise of its own"):
        load_pipeline(load_suite(str(folder / "tiny.toml")), torch.device("cpu"))
