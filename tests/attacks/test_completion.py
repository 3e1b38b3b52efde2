"""What the base model begins and the edited one finishes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import gaussian, point
from held import a_model, holding, known_pictures, made, one_by_one, untouched
from pydantic import ValidationError

from attacks.completion import Completion, beginnings
from bench.base.errors import UserError
from bench.contracts.picture_attack import plain_stage
from bench.diffusion.denoiser import Denoiser
from bench.testbed.tiny import build_tiny_pipeline

PLACE = torch.linspace(-2, 2, 32).reshape(2, 4, 4)
STEPS = 10


def test_nothing_begun_is_the_edited_model_and_all_of_it_the_base_model(tiny_suite, tmp_path):
    base, edited = a_model(point(PLACE)), a_model(gaussian(0.3))
    targets = known_pictures(tmp_path)
    attack = Completion(images=2, prefixes=(0, 4, STEPS))
    found = made(
        attack.stages(tiny_suite, targets), [holding(base, "base"), holding(edited)], targets
    )
    plain = plain_stage("edited", 2)
    for model, mark in ((edited, 0), (base, -1)):
        alone = plain.work(holding(model), targets, [{}, {}])
        for arrays, without in zip(found, alone, strict=True):
            np.testing.assert_array_equal(arrays["pictures"][mark], without["pictures"][0])
    assert not np.array_equal(found[0]["pictures"][1], found[0]["pictures"][0])


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_same_of_networks_under_schedulers_with_a_memory(
    tiny_suite, tmp_path, scheduler, prediction_type
):
    import diffusers

    models = []
    for seed in (0, 1):
        pipe = build_tiny_pipeline(seed, prediction_type)
        config = dict(pipe.scheduler.config, skip_prk_steps=True)
        pipe.scheduler = getattr(diffusers, scheduler).from_config(config)
        models.append(Denoiser(pipe, 4, 3.0, batch_size=4))
    base, edited = models
    edited.pipe.vae = base.pipe.vae  # which decodes at the end, whoever began
    steps = len(base.timesteps)  # PNDM makes one more than it is asked for
    targets = known_pictures(tmp_path, side=32)
    attack = Completion(images=2, prefixes=(0, steps))
    helds = [holding(base, "base", 32), holding(edited, "edited", 32)]
    same = untouched(edited)
    rows = edited.rows
    found = made(attack.stages(tiny_suite, targets), helds, targets)
    # the base model's steps are not evaluated again
    assert edited.rows - rows == len(targets) * 2 * steps * 2 and same()
    for model, mark in ((edited, 0), (base, 1)):
        alone = plain_stage("edited", 2).work(holding(model, side=32), targets, [{}, {}])
        for arrays, without in zip(found, alone, strict=True):
            np.testing.assert_array_equal(arrays["pictures"][mark], without["pictures"][0])


def test_pictures_do_not_depend_on_their_batch(tiny_suite, tmp_path):
    targets = known_pictures(tmp_path, 3)
    helds = [holding(a_model(point(PLACE)), "base"), holding(a_model(gaussian(0.3)))]
    stages = Completion(images=2, prefixes=(0, 3)).stages(tiny_suite, targets)
    for batched, alone in zip(
        made(stages, helds, targets), one_by_one(stages, helds, targets), strict=True
    ):
        np.testing.assert_array_equal(batched["pictures"], alone["pictures"])


def test_the_beginning_alone_is_finished_without_a_prompt_at_half_the_cost(tiny_suite, tmp_path):
    base = a_model(point(PLACE))
    targets = known_pictures(tmp_path)
    attack = Completion(images=2, prefixes=(0, 3, STEPS))
    stages = [attack.beginning(tiny_suite), attack.forgetting(tiny_suite)]
    held = holding(base, "base")
    before = stages[0].work(held, targets, [{}, {}])
    assert base.rows == 4 * STEPS * 2
    found = stages[1].work(held, targets, before)
    assert base.rows == 4 * STEPS * 2 + 4 * (STEPS + STEPS - 3)
    request = held.request(targets, 2)
    without = held.drawn(request.replace(embeddings=request.null_embeddings))
    np.testing.assert_array_equal(
        np.concatenate([arrays["pictures"][0] for arrays in found]), without
    )
    np.testing.assert_array_equal(
        np.concatenate([arrays["pictures"][2] for arrays in found]), held.drawn(request)
    )


def test_beginnings_follow_from_the_steps_of_the_suite(tiny_suite):
    assert beginnings(50) == (0, 1, 2, 3, 5, 10)
    assert beginnings(25) == (0, 1, 2, 3, 5)
    assert beginnings(3) == (0, 1, 2, 3)
    assert beginnings(1) == (0, 1)
    with pytest.raises(UserError, match="has 3"):
        Completion(prefixes=(0, 4)).fits(tiny_suite)


@pytest.mark.parametrize("prefixes", [(1, 2), (0, 2, 1), (0,), (0, 0)])
def test_beginnings_begin_with_nothing_and_ascend(prefixes):
    with pytest.raises(ValidationError):
        Completion(prefixes=prefixes)
