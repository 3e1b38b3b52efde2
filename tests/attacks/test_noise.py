"""More noise at every step: which noise, how much of it, and in whose order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import gaussian
from held import a_model, holding, known_pictures, made, one_by_one, untouched

from attacks._levels import levels_of, scales_of
from attacks.noise import Noise
from bench.diffusion.denoiser import Denoiser
from bench.testbed.tiny import build_tiny_pipeline


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_noise_it_is_the_suites_ddim(tiny_suite, tmp_path, prediction_type):
    denoiser = Denoiser(build_tiny_pipeline(0, prediction_type), 4, 3.0, batch_size=4)
    targets = known_pictures(tmp_path, images=3, side=32)
    attack = Noise(images=3, etas=(0,), factors=(1.04,))
    same = untouched(denoiser)
    found = made(attack.stages(tiny_suite, targets), [holding(denoiser, side=32)], targets)
    for arrays in found:
        plain, shaken = arrays["pictures"].astype(int)
        assert np.abs(plain - shaken).max() <= 1 and arrays["clipped"] == 0
    assert denoiser.rows == 2 * (2 * 3 * 4 * 2) and same()


def test_a_variant_does_not_depend_on_the_others_nor_on_its_batch(tiny_suite, tmp_path):
    helds, targets = [holding(a_model(gaussian(0.3)))], known_pictures(tmp_path, 3, images=4)
    whole = Noise(etas=(1, 1.85), factors=(1, 1.04))
    stages = whole.stages(tiny_suite, targets)
    found, alone = made(stages, helds, targets), one_by_one(stages, helds, targets)
    for batched, single in zip(found, alone, strict=True):
        np.testing.assert_array_equal(batched["pictures"], single["pictures"])
        assert len({picture.tobytes() for picture in batched["pictures"][1]}) == 4
    first = made(Noise(etas=(1,), factors=(1,)).stages(tiny_suite, targets), helds, targets)
    np.testing.assert_array_equal(first[0]["pictures"][:, 0], found[0]["pictures"][:, 0])


@pytest.mark.parametrize("eta, factor", [(1.0, 1.0), (1.0, 1.5), (0.5, 1.2)])
def test_the_spread_of_a_gaussian_is_what_the_formula_says(tmp_path, eta, factor):
    """Pictures from N(0, c I) under one caption: the variance follows step by step."""
    variance, denoiser = 0.4, a_model(gaussian(0.4), steps=12)
    levels, images = levels_of(denoiser), 400
    (known,) = known_pictures(tmp_path, 1, images)
    held = holding(denoiser)
    expected = 1.0
    for a, b in zip(levels.before.double(), levels.after.double(), strict=True):
        # e = m x, so that the step multiplies latents and adds what is new
        m = (1 - a).sqrt() / (a * variance + 1 - a)
        s = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        kept = b.sqrt() * (1 - (1 - a).sqrt() * m) / a.sqrt() + (1 - b - s**2).sqrt() * m
        expected = float(kept**2 * expected + (s * factor) ** 2)
    request = held.request([known], images)
    draws = [known.random("noise", eta, factor, seed) for seed in known.seeds]
    latents = Noise().sampled(held, request, levels, [(eta, factor)] * images, draws)
    assert float(latents.var()) == pytest.approx(expected, rel=0.03)


def test_more_noise_than_a_level_holds_is_counted_and_cut_off(tmp_path):
    denoiser = a_model(gaussian(0.4), steps=50)
    levels, targets = levels_of(denoiser), known_pictures(tmp_path, images=1)
    held = holding(denoiser)
    for root in ("clip", "abs"):
        attack = Noise(etas=(1.2,), factors=(1,), root=root)
        shares = [arrays["clipped"] for arrays in attack.generate(held, targets, [{}, {}])]
        a, b = levels.before, levels.after
        beyond = 1.2**2 * (1 - a / b) / (1 - a) > 1
        assert shares == [float(beyond.double().mean())] * 2 and 0 < shares[0] < 1
    (other,) = [
        Noise(etas=(1.2,), factors=(1,)).generate(held, targets[:1], [{}])[0]["pictures"][1]
    ]
    assert not np.array_equal(other, attack.generate(held, targets[:1], [{}])[0]["pictures"][1])


def test_levels_and_scales_under_schedulers_with_sigmas():
    import diffusers

    pipe = build_tiny_pipeline()
    plain = Denoiser(pipe, 5, 3.0)
    assert torch.equal(scales_of(plain), torch.ones(5))
    assert float(levels_of(plain).after[-1]) == pytest.approx(
        float(pipe.scheduler.alphas_cumprod[0])
    )
    config = pipe.scheduler.config
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    euler = Denoiser(pipe, 5, 3.0)
    torch.testing.assert_close(scales_of(euler), euler.alphas.sqrt().float())
    assert float(levels_of(euler).after[-1]) == 1
