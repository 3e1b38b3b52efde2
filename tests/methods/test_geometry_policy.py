"""The geometry policy: when it acts, on which images, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import CHANNELS, SIDE, analytic, gaussian, shaped
from pydantic import ValidationError

from bench import Detector, Observation, Prompt
from bench.contracts.method import FitData, Method
from bench.diffusion.denoiser import Denoiser
from bench.running.recording import Recording
from bench.running.sampling import sample
from bench.testbed.tiny import CAPTIONS
from methods.geometry_policy import GeometryPolicy
from metrics.detectors.geometry_gap import GeometryGap

PLACE = torch.linspace(-1, 1, CHANNELS * SIDE * SIDE).reshape(CHANNELS, SIDE, SIDE)
CLEAN = FitData(clean_prompts=("-1", "-2", "-3"))
MEMORIZED, ORDINARY = "1", "-5"


def field(scaled, signal, captions):
    """Positive captions are one memorized picture, -1 to -3 push everything in one direction, and
    lower ones drive pictures apart.
    """
    a = shaped(signal)
    known = (scaled - a.sqrt() * PLACE) / (1 - a).sqrt()
    plain = (1 - a).sqrt() * scaled
    captions = shaped(captions)
    pull = torch.where(captions < -4, -scaled, PLACE.expand_as(scaled)) / 20
    return torch.where(captions > 0, known, torch.where(captions < 0, plain + pull, plain))


def drawn(denoiser, method, prompts, state, seeds=None):
    """Final latents, what was reported, and rows evaluated."""
    request = denoiser.request(prompts, seeds or list(range(len(prompts))))
    before = denoiser.evaluations
    latents = sample(denoiser, request, method, state)
    return latents, request.facts, denoiser.evaluations - before


def test_quantile_one_is_none_bit_for_bit(tiny_pipe):
    denoiser, method = Denoiser(tiny_pipe, steps=8, guidance_scale=4.0), GeometryPolicy(quantile=1)
    assert method.needed() == ()
    state = method.fit(denoiser, FitData())
    found, facts, cost = drawn(denoiser, method, CAPTIONS[:2], state)
    expected, _, least = drawn(denoiser, Method(), CAPTIONS[:2], {})
    assert state == {} and facts == {"triggered": [0, 0]}
    assert torch.equal(found, expected) and cost == least
    denoiser.close()


def test_it_finds_the_memorized_image_alone():
    denoiser, method = analytic(field, steps=12), GeometryPolicy()
    state = method.fit(denoiser, CLEAN)
    assert state["thresholds"].shape == (3,)
    prompts = [ORDINARY, MEMORIZED, ORDINARY]
    found, facts, cost = drawn(denoiser, method, prompts, state)
    expected, _, least = drawn(denoiser, Method(), prompts, {})
    assert facts["triggered"] == [0, 1, 0]
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert float((found[1] - expected[1]).abs().max()) > 0.01
    # Three tests of two images and, because step 3 lies in the delay, two of the memorized one.
    assert cost - least == 2 * 8 * (3 + 3 + 2)


def test_an_image_does_not_depend_on_its_batch():
    denoiser, method = analytic(field, steps=12), GeometryPolicy()
    state = method.fit(denoiser, CLEAN)
    together, facts, _ = drawn(denoiser, method, [ORDINARY, MEMORIZED], state, [5, 6])
    for row, (prompt, seed) in enumerate([(ORDINARY, 5), (MEMORIZED, 6)]):
        alone, fact, _ = drawn(denoiser, method, [prompt], state, [seed])
        torch.testing.assert_close(alone[0], together[row])
        assert fact["triggered"] == [facts["triggered"][row]]


def test_the_delay_is_so_many_steps_without_the_prompt():
    denoiser, method = analytic(field, steps=12), GeometryPolicy(at=(1,), delay=3)
    state, single = method.fit(denoiser, CLEAN), []

    class Watched(GeometryPolicy):
        def guide(self, step, state):
            guided = super().guide(step, state)
            single.append(not step.predicted_both)
            return guided

    _, facts, cost = drawn(denoiser, Watched(at=(1,), delay=3), [MEMORIZED], state)
    assert facts["triggered"] == [1]
    assert single == [False, False, True, True, True] + 7 * [False]
    assert cost == 2 * 9 + 3 + 2 * 8


def test_images_in_a_delay_take_the_unconditional_prediction_beside_others():
    denoiser, seen = analytic(field, steps=12), []
    state = GeometryPolicy().fit(denoiser, CLEAN)

    class Watched(GeometryPolicy):
        def guide(self, step, state):
            guided = super().guide(step, state)
            null = (guided == step.unconditional).flatten(1).all(1)
            seen.append(null.tolist())
            return guided

    drawn(denoiser, Watched(), [ORDINARY, MEMORIZED], state)
    assert [own for own, _ in seen] == 12 * [False]
    assert [own for _, own in seen] == 2 * [False] + 4 * [True] + [False] + 4 * [True] + [False]


def test_a_model_without_a_gap_never_triggers():
    denoiser, method = analytic(gaussian(), steps=8), GeometryPolicy(quantile=0)
    state = method.fit(denoiser, CLEAN)
    assert torch.equal(state["thresholds"], torch.zeros(3))
    assert drawn(denoiser, method, ["1", "2"], state)[1] == {"triggered": [0, 0]}


def test_thresholds_are_quantiles_of_the_detector_and_fitting_is_counted():
    denoiser = analytic(field, steps=8)
    prompts, seed = ("-1", "-2", "-30", "1"), 7
    method = GeometryPolicy(at=(3,), quantile=0.5, seed=seed, calibration_prompts=3)
    state = method.fit(denoiser, FitData(clean_prompts=prompts))
    assert denoiser.evaluations == 3 * (2 * 4 + 2 * 8)
    detector = GeometryGap(at=(3,), directions=8, seed=seed)
    request = denoiser.request(prompts[:3], [7, 8, 9])
    recording = Recording(denoiser, request, detector.recorders())
    sample(denoiser, request, Method(), {}, recording)
    (kept,) = recording.results().values()
    seen = Observation(
        tuple(Prompt(text, text, "", ()) for text in prompts[:3]),
        1,
        np.array([[7], [8], [9]]),
        (),
        lambda _: kept.numpy()[:, None],
        lambda _: [],
        lambda: denoiser,
    )
    assert isinstance(detector, Detector)
    expected = np.quantile(detector.score(seen), 0.5)
    assert float(state["thresholds"][0]) == pytest.approx(expected, abs=1e-6)


def test_steps_beyond_the_last_do_not_test(tiny_pipe):
    denoiser, method = Denoiser(tiny_pipe, steps=3, guidance_scale=4.0), GeometryPolicy(delay=1)
    state = method.fit(denoiser, FitData(clean_prompts=tuple(CAPTIONS[3:])))
    assert state["thresholds"].shape == (1,)
    found, facts, _ = drawn(denoiser, method, CAPTIONS[:2], state)
    assert torch.isfinite(found).all() and len(facts["triggered"]) == 2
    denoiser.close()
    short = Denoiser(tiny_pipe, steps=1, guidance_scale=4.0)
    assert method.fit(short, FitData(clean_prompts=("a",)))["thresholds"].shape == (0,)
    assert torch.equal(
        drawn(short, method, CAPTIONS[:1], {"thresholds": torch.zeros(0)})[0],
        drawn(short, Method(), CAPTIONS[:1], {})[0],
    )
    short.close()


def test_steps_must_ascend():
    with pytest.raises(ValidationError, match="ascending"):
        GeometryPolicy(at=(3, 1))
