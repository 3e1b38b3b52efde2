"""Back to the noise of a picture, and forth again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import DIMENSIONS, gaussian, linear, point
from held import a_model, holding, known_pictures, made, one_by_one, untouched

from attacks._levels import levels_of
from attacks.latent_inversion import LatentInversion, difference_of_means


def a_linear_field():
    torch.manual_seed(0)
    matrix = 0.3 * torch.eye(DIMENSIONS) + 0.05 * torch.randn(DIMENSIONS, DIMENSIONS)
    return linear(matrix, matrix)


def test_a_linear_model_walks_back_and_forth(tmp_path):
    targets = known_pictures(tmp_path, 3)
    held = holding(a_model(a_linear_field(), steps=20))
    latents, away = held.latents(targets), []
    for refinements in (1, 8):
        found = LatentInversion(refinements=refinements).invert(held, targets, [{}] * 3)
        noise = torch.from_numpy(np.stack([arrays["noise"] for arrays in found]))
        back = held.sample(held.request(targets, 1).replace(latents=noise))
        away.append(float((back - latents).abs().max()))
    assert away[1] < 0.001 < away[0] < 1


def test_the_noise_of_a_gaussian_is_known(tmp_path):
    """Pictures from N(0, I): the path of DDIM is x itself, at every level."""
    targets = known_pictures(tmp_path)
    held = holding(a_model(gaussian(1.0), steps=200))
    found = LatentInversion(refinements=5).invert(held, targets, [{}, {}])
    for arrays, latents in zip(found, held.latents(targets), strict=True):
        np.testing.assert_allclose(arrays["noise"], latents.numpy(), atol=0.05)


def test_the_served_model_begins_at_the_noise(tiny_suite, tmp_path):
    edited, served = a_model(a_linear_field()), a_model(a_linear_field())
    targets, same = known_pictures(tmp_path, 3), untouched(edited)
    helds = [holding(edited), holding(served, "served")]
    stages = LatentInversion(refinements=8).stages(tiny_suite, targets)
    found = made(stages, helds, targets)
    assert edited.rows == 3 * 10 * 8 and served.rows == 2 * 3 * 10 * 2 and same()
    for known, arrays in zip(targets, found, strict=True):
        plain, inverted = arrays["pictures"][:, 0, ..., :2].astype(int)
        wanted = known.pixels(4)[..., :2].astype(int)
        assert np.abs(inverted - wanted).max() <= 2 < np.abs(plain - wanted).max()
    noise = stages[0].work(helds[0], targets[:1], [{}])[0]["noise"]
    assert found[0]["likelihood"] == pytest.approx(
        -float(np.square(noise).mean() + math.log(2 * math.pi)) / 2
    )


def test_pictures_do_not_depend_on_their_batch(tiny_suite, tmp_path):
    targets = known_pictures(tmp_path, 3)
    helds = [holding(a_model(gaussian(0.3))), holding(a_model(gaussian(0.3)), "served")]
    stages = LatentInversion().stages(tiny_suite, targets)
    for batched, alone in zip(
        made(stages, helds, targets), one_by_one(stages, helds, targets), strict=True
    ):
        np.testing.assert_array_equal(batched["pictures"], alone["pictures"])
        assert batched["likelihood"] == alone["likelihood"]


def test_what_the_picture_is_walked_back_with(tmp_path):
    targets = known_pictures(tmp_path, 1)
    held = holding(a_model(point(torch.ones(2, 4, 4))))
    own, null = (
        LatentInversion(prompt=prompt).invert(held, targets, [{}])[0]["noise"]
        for prompt in ("own", "null")
    )
    assert not np.allclose(own, null)
    # the empty caption's pictures are from N(0, I), of which every latent is noise
    np.testing.assert_allclose(null, held.latents(targets)[0].numpy(), rtol=0.5, atol=0.3)


def test_noise_is_handed_in_as_each_scheduler_takes_it(tiny_suite, tmp_path):
    import diffusers

    denoiser = a_model(a_linear_field(), steps=20)
    pipe = denoiser.pipe
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    denoiser.timesteps, denoiser.alphas = denoiser._levels()
    assert float(levels_of(denoiser).after[-1]) == 1
    targets, held = known_pictures(tmp_path), holding(denoiser)
    stages = LatentInversion(refinements=8).stages(tiny_suite, targets)
    for known, arrays in zip(targets, made(stages, [held, held], targets), strict=True):
        inverted = arrays["pictures"][1, 0, ..., :2].astype(int)
        assert np.abs(inverted - known.pixels(4)[..., :2]).max() <= 25  # another kind of step


def test_difference_of_means_has_an_interval_around_it():
    random = np.random.default_rng(0)
    gap, low, high = difference_of_means(random.normal(1, 1, (30, 1)), random.normal(0, 1, (30, 1)))
    assert low < gap < high and low < 1 < high and high - low == pytest.approx(1.05, abs=0.3)
