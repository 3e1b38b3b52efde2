"""Noise and denoise again: from where, how often, and what is counted at the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import gaussian, point
from held import a_model, holding, known_pictures, made, one_by_one, untouched
from pydantic import ValidationError

from attacks.cyclic import Cyclic, near_duplicates, place_of
from bench.base.errors import UserError
from bench.contracts.picture_attack import plain_stage

PLACE = torch.linspace(-2, 2, 32).reshape(2, 4, 4)


def test_no_cycle_is_a_plain_generation_and_rows_are_counted(tiny_suite, tmp_path):
    denoiser = a_model(gaussian(0.3))
    same, held, targets = untouched(denoiser), holding(denoiser, "served"), known_pictures(tmp_path)
    attack = Cyclic(images=2, cycles=(0, 3))
    found = made(attack.stages(tiny_suite, targets), [held], targets)
    index = place_of(denoiser, 0.5)
    assert denoiser.rows == 4 * 2 * (10 + 3 * (10 - index)) and same()
    plain = plain_stage("served", 2).work(held, targets, [{}, {}])
    for arrays, without in zip(found, plain, strict=True):
        np.testing.assert_array_equal(arrays["pictures"][0], without["pictures"][0])
        assert (arrays["pictures"][1] != arrays["pictures"][0]).any()


def test_fewer_cycles_are_the_beginning_of_more(tiny_suite, tmp_path):
    targets, held = known_pictures(tmp_path), [holding(a_model(gaussian(0.3)), "served")]
    many, few = (
        made(Cyclic(images=2, cycles=cycles).stages(tiny_suite, targets), held, targets)
        for cycles in ((0, 1, 2, 4), (0, 2))
    )
    np.testing.assert_array_equal(many[0]["pictures"][[0, 2]], few[0]["pictures"])


def test_a_cycle_keeps_a_gaussian_and_falls_into_a_point(tmp_path):
    """The level of one cycle: a model of N(0, c I) gives pictures of that variance again, and one
    of a single picture that picture.
    """
    for field, variance in ((gaussian(0.5), 0.5), (point(PLACE), None)):
        held = holding(a_model(field, steps=50, guidance=1.0), "served")
        (known,) = known_pictures(tmp_path, 1, images=300)
        attack, seen = Cyclic(cycles=(0, 4)), []
        denoiser = held.denoiser
        denoiser.decode = lambda latents, seen=seen: seen.append(latents) or np.zeros(1)
        draws = [known.random("cyclic", seed) for seed in known.seeds]
        attack.walked(held, held.request([known], 300), draws)
        if variance:
            assert float(seen[1].var()) == pytest.approx(variance, rel=0.1)
        else:
            torch.testing.assert_close(seen[1], PLACE.expand_as(seen[1]), atol=0.15, rtol=0)


def test_pictures_do_not_depend_on_their_batch(tiny_suite, tmp_path):
    targets, helds = known_pictures(tmp_path, 3), [holding(a_model(gaussian(0.3)), "served")]
    stages = Cyclic(images=2, cycles=(0, 2)).stages(tiny_suite, targets)
    for batched, alone in zip(
        made(stages, helds, targets), one_by_one(stages, helds, targets), strict=True
    ):
        np.testing.assert_array_equal(batched["pictures"], alone["pictures"])
        np.testing.assert_array_equal(batched["constant"], alone["constant"])


def test_the_nearest_step_is_taken_but_not_the_first():
    denoiser = a_model(gaussian(), steps=10)
    assert denoiser.timesteps.tolist()[:3] == [901, 801, 701]
    assert [place_of(denoiser, gamma) for gamma in (0.999, 0.8, 0.5, 0.001)] == [1, 1, 4, 9]


def test_cycles_under_a_scheduler_with_sigmas_go_on_at_the_same_level(tiny_suite, tmp_path):
    import diffusers

    variances = []
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        denoiser = a_model(gaussian(0.5), steps=50)
        pipe = denoiser.pipe
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        denoiser.timesteps, denoiser.alphas = denoiser._levels()
        held, seen = holding(denoiser, "served"), []
        denoiser.decode = lambda latents, seen=seen: seen.append(latents) or np.zeros(1)
        (known,) = known_pictures(tmp_path, 1, images=200)
        draws = [known.random("cyclic", seed) for seed in known.seeds]
        Cyclic(cycles=(0, 3)).walked(held, held.request([known], 200), draws)
        variances.append(float(seen[1].var()))
    assert variances == pytest.approx([0.5, 0.5], rel=0.1)


def test_groups_of_near_duplicates_hang_together():
    angles = np.deg2rad([0, 10, 20, 90, 180, 185])
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert near_duplicates(features, np.cos(np.deg2rad(11))) == [[0, 1, 2], [4, 5]]
    assert near_duplicates(features, 0.9999) == []


def test_settings_that_cannot_work(tiny_suite):
    for cycles in ((1, 2), (0,), (0, 2, 1)):
        with pytest.raises(ValidationError):
            Cyclic(cycles=cycles)
    model = tiny_suite.settings.model.model_copy(update={"scheduler": "PNDMScheduler"})
    settings = tiny_suite.settings.model_copy(update={"model": model})
    object.__setattr__(tiny_suite, "settings", settings)
    with pytest.raises(UserError, match="in the middle"):
        Cyclic().fits(tiny_suite)
