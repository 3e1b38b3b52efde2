"""A classifier that needs no training: its gradient, how sure it is, and what it pulls to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import gaussian, point
from held import a_model, holding, known_pictures, made, one_by_one, untouched
from pydantic import ValidationError

from attacks._levels import levels_of, scales_of
from attacks.exact_guidance import Classifier, ExactGuidance, classifier_of
from bench.contracts.picture_attack import plain_stage


def test_the_gradient_is_that_of_the_log_probability():
    torch.manual_seed(0)
    levels = levels_of(a_model(gaussian()))
    classifier = Classifier(torch.randn(5, 32).double(), levels, tau=7.0)
    latents = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    index, numbers = 6, [4, 0, 2]
    a = levels.before[index].double()
    distances = (latents.flatten(1)[:, None] - a.sqrt() * classifier.pictures).square().sum(2)
    chances = (-distances / (2 * (1 - a) * 7)).log_softmax(1)
    chances[range(3), numbers].sum().backward()
    with torch.no_grad():
        gradient, entropy = classifier.pull(latents, index, numbers)
    torch.testing.assert_close(gradient, latents.grad)
    expected = -(chances.exp() * chances).sum(1) / math.log(5)
    torch.testing.assert_close(entropy, expected.detach())


def test_no_weight_is_the_edited_model_and_more_weight_brings_any_picture(tiny_suite, tmp_path):
    denoiser = a_model(gaussian(0.3), steps=30)
    same, targets, held = untouched(denoiser), known_pictures(tmp_path, 4), holding(denoiser)
    attack = ExactGuidance(images=2)
    stages = attack.stages(tiny_suite, targets)
    found = made(stages, [held], targets)
    assert denoiser.rows == 8 * 4 * 2 * 30 * 2 and denoiser.backward_rows == 0 and same()
    plain = plain_stage("edited", 2).work(held, targets, [{}] * 4)
    for known, arrays, without in zip(targets, found, plain, strict=True):
        np.testing.assert_array_equal(arrays["pictures"][0], without["pictures"][0])
        assert arrays["chosen"] == attack.weights.index(0.25)
        assert arrays["entropy"].shape == (8, 2, 3)
        assert (arrays["entropy"] > -1e-9).all() and (arrays["entropy"] < 1 + 1e-9).all()
        away = np.abs(arrays["pictures"].astype(float) - known.pixels(4))[..., :2].mean(
            (1, 2, 3, 4)
        )
        assert away[-1] < 0.7 * away[0]  # a control as well


def test_half_of_the_controls_lead_by_more_than_one_in_mid_schedule(tmp_path):
    targets = known_pictures(tmp_path, 10)
    held = holding(a_model(gaussian()))
    classifier = classifier_of(held, targets)
    controls = [known for known in targets if not known.memorized]
    a, middle = classifier.levels.before[5].double(), 5
    leads = []
    for known in controls:
        noise = torch.randn((2, 4, 4), generator=known.random("exact_guidance", "tau")).double()
        clean = held.latents([known]).double()
        odds = classifier.odds(a.sqrt() * clean + (1 - a).sqrt() * noise, middle)[0]
        own = targets.index(known)
        leads.append(float(odds[own] - np.delete(odds.numpy(), own).max()))
    assert sorted(leads)[2] == pytest.approx(1)
    # a weight of 1 pulls as hard as noise is long
    even = torch.full((10,), 0.1).double() @ classifier.pictures
    pulls = [
        float(a.sqrt() / (1 - a).sqrt() / classifier.tau * (row - even).norm()) * classifier.unit
        for row in classifier.pictures[5:]
    ]
    assert sorted(pulls)[2] == pytest.approx(math.sqrt(32))


def test_pictures_do_not_depend_on_their_batch_but_on_the_set(tiny_suite, tmp_path):
    targets, helds = known_pictures(tmp_path, 4), [holding(a_model(point(torch.ones(2, 4, 4))))]
    attack = ExactGuidance(images=2, weights=(0, 0.25))
    stages = attack.stages(tiny_suite, targets)
    for batched, alone in zip(
        made(stages, helds, targets), one_by_one(stages, helds, targets), strict=True
    ):
        np.testing.assert_array_equal(batched["pictures"], alone["pictures"])
        np.testing.assert_allclose(batched["entropy"], alone["entropy"])
    other = attack.stages(tiny_suite, targets[:3])
    assert other[0].settings != stages[0].settings


def test_latents_of_other_schedulers_are_brought_to_unit_scale(tmp_path):
    """A classifier that is sure leaves the picture where it is under Euler too."""
    import diffusers

    targets = known_pictures(tmp_path, 4, images=1)
    pulled = []
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        denoiser = a_model(gaussian(0.3), steps=30)
        pipe = denoiser.pipe
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        denoiser.timesteps, denoiser.alphas = denoiser._levels()
        held = holding(denoiser)
        guide = classifier_of(held, targets).guide([0], 0.5, scales_of(denoiser), [])
        pulled.append(held.sample(held.request(targets[:1], 1), guide))
    torch.testing.assert_close(*pulled, atol=0.1, rtol=0)


@pytest.mark.parametrize("settings", [{"weights": (1, 2)}, {"weights": (0, 1)}])
def test_the_chosen_weight_is_one_of_the_grid(settings):
    with pytest.raises(ValidationError):
        ExactGuidance(**settings)
