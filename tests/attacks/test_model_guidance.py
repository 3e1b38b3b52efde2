"""Guidance away from the base model: its limits, its controls, and whom the attacker names."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analytic import gaussian, shaped
from held import a_model, holding, known_pictures, one_by_one, untouched

from attacks.model_guidance import BASE, OWN, ModelGuidance, named_images
from bench.base.errors import UserError
from bench.contracts.held import Finding, Known, Stage
from bench.contracts.target import Target
from bench.diffusion.denoiser import Denoiser, trajectory
from bench.suite.prompts import Prompt
from bench.testbed.tiny import build_tiny_base, build_tiny_pipeline


def field(shift):
    """A model in closed form that leans to another side for every caption."""
    inner = gaussian(0.4)

    def noise(latents, signal, conditions):
        return inner(latents, signal, conditions) + shaped(0.2 * conditions + shift)

    return noise


def tiny(pipe, steps=3):
    return Denoiser(pipe, steps, 4.0, batch_size=4)


def latents_of(attack, model, base, known):
    held = holding(model)
    request = held.request(known, attack.images)
    return held.sample(request, attack.guide(model, base)), request


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_with_one_and_nothing_it_is_the_plain_conditional(tmp_path, prediction_type):
    model, base = tiny(build_tiny_pipeline(0, prediction_type)), tiny(build_tiny_base())
    known = known_pictures(tmp_path, images=2)
    guided, request = latents_of(ModelGuidance(w=1, k=0, images=2), model, base, known)
    with torch.no_grad():
        plain = trajectory(model, request, lambda step: step.conditional)
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-5)


def test_with_one_and_nothing_the_prediction_is_the_captions_bit_for_bit(tmp_path):
    model, base = a_model(field(0)), a_model(field(0.5))
    known = known_pictures(tmp_path)
    guided, request = latents_of(ModelGuidance(w=1, k=0, images=2), model, base, known)
    assert torch.equal(guided, trajectory(model, request, lambda step: step.conditional))


@pytest.mark.parametrize("w", [0.0, 3.0, 7.5])
def test_away_from_itself_it_is_ordinary_guidance(tmp_path, w):
    model, base = tiny(build_tiny_pipeline()), tiny(build_tiny_pipeline())
    known = known_pictures(tmp_path)
    attack = ModelGuidance(w=w, k=0, images=2)
    guided, request = latents_of(attack, model, base, known)
    assert torch.equal(guided, latents_of(attack, model, model, known)[0])
    with torch.no_grad():
        ordinary = trajectory(model, request, lambda step: step.guided(w))
    torch.testing.assert_close(guided, ordinary, rtol=0, atol=1e-4)


def test_every_step_is_the_formula(tmp_path):
    model, base = a_model(field(0.1), steps=3), a_model(field(-0.3), steps=3)
    attack, (known, _) = ModelGuidance(w=3, k=-0.02, images=1), known_pictures(tmp_path)
    guided, request = latents_of(attack, model, base, [known])
    scheduler, latents = model.new_scheduler(), request.latents
    empty = base.encode([""])
    for index, time in enumerate(scheduler.timesteps):
        given = model.epsilon(latents, time, request.embeddings, index=index)
        without = base.epsilon(latents, time, empty, index=index)
        noise = without + 3 * (given - without) - 0.02 * without
        latents = scheduler.step(noise, time, latents, return_dict=False)[0]
    torch.testing.assert_close(guided, latents)


def test_batched_is_one_by_one_and_both_models_stay_as_they_were(tmp_path):
    model, base = tiny(build_tiny_pipeline()), tiny(build_tiny_base())
    same = untouched(model), untouched(base)
    known, attack = known_pictures(tmp_path, 3, images=3, side=32), ModelGuidance(images=3)

    def work(held, targets, before):
        return attack.generate(held, base, targets)

    stage = Stage("model_guidance", "edited", {}, work)
    held = holding(model, side=32)
    together = work(held, known, [])
    alone = one_by_one([stage], [held], known)
    for batched, single in zip(together, alone, strict=True):
        assert batched["pictures"].shape == (2, 3, 32, 32, 3)
        difference = batched["pictures"].astype(int) - single["pictures"]
        assert np.abs(difference).max() <= 1
    assert not np.array_equal(together[0]["pictures"][OWN], together[0]["pictures"][BASE])
    assert all(one() for one in same)


def test_rows_of_both_models_are_counted(tmp_path):
    model, base = a_model(field(0), steps=5), a_model(field(0.5), steps=5)
    found = ModelGuidance(images=2).generate(
        holding(model), base, known_pictures(tmp_path, 3, images=2)
    )
    # own: two rows of the model; base: one of each
    assert [arrays["rows"].tolist() for arrays in found] == [[2 * 5 * 3, 2 * 5]] * 3
    assert (model.rows, base.rows) == (3 * 2 * 5 * 3, 3 * 2 * 5)


def test_the_base_as_its_own_fine_tuning_adds_nothing(tmp_path):
    model, base = tiny(build_tiny_pipeline()), tiny(build_tiny_pipeline())
    for settings in ({}, {"w": 3, "k": -0.02}):
        attack = ModelGuidance(images=2, **settings)
        for arrays in attack.generate(holding(model), base, known_pictures(tmp_path, side=32)):
            np.testing.assert_array_equal(*arrays["pictures"])


# --- whom the attacker names


def slow_cliques(features, count, joined):
    """Of every subset of images, by size: the first largest one that is all alike."""
    left, found = list(range(len(features))), []
    while len(found) < count and left:
        for size in range(len(left), 0, -1):
            cliques = [
                group
                for group in combinations(left, size)
                if all(features[a] @ features[b] > joined for a, b in combinations(group, 2))
            ]
            if cliques:
                break
        found.append(cliques)
        if len(cliques) > 1:
            return found  # which one is taken is the solver's choice
        left = [one for one in left if one not in cliques[0]]
    return found


@pytest.mark.parametrize("seed", range(12))
def test_named_images_are_those_of_a_slow_search(seed):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 6))
    features = centres[random.integers(0, 3, 9)] + 0.6 * random.normal(size=(9, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    named = named_images(features, 3, 0.6)
    for one, cliques in zip(named, slow_cliques(features, 3, 0.6), strict=False):
        assert one.proven and one.size == len(cliques[0])
        group = next(group for group in cliques if one.medoid in group)
        if len(cliques) == 1:
            sums = [sum(features[a] @ features[b] for b in group) for a in group]
            assert one.medoid == group[int(np.argmax(sums))]


def test_single_images_are_named_where_nothing_agrees_and_never_more_than_there_are():
    named = named_images(np.eye(3), 5, 0.5)
    assert [one.size for one in named] == [1, 1, 1]
    assert sorted(one.medoid for one in named) == [0, 1, 2]


def finding(row, features, text="text"):
    known = Known(Prompt(f"p{row}", text, "", ("x",)), "x", True, (0,), 0)
    return Finding(known, np.asarray(features, dtype=float), 1)


def test_pictures_of_one_caption_share_its_images():
    """Two pictures of one caption: two cliques over the images of both."""
    axes = np.eye(4)
    found = [
        finding(0, [[axes[0], axes[1], axes[0]]]),
        finding(1, [[axes[0], axes[1], axes[3]]]),
        finding(2, [[axes[2], axes[2], axes[0]]], "another"),
    ]
    named = ModelGuidance().named(found, 0, axes[[0, 1, 0]], 0.5)
    assert named.similarity.tolist() == [1, 1, 0]
    assert named.sizes == (3, 2, 2) and named.unproven == 0


def test_an_attacker_who_may_only_generate_gets_no_base():
    target = Target(SimpleNamespace(), None, "api", lambda *_: None, lambda: None)
    with pytest.raises(UserError, match="declare threat"):
        target.base()
