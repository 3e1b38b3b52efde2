"""Detectors that differentiate the model, against closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import CHANNELS, DIMENSIONS, SIDE, analytic, gaussian, linear, point, shaped
from observing import observe

from bench.diffusion.denoiser import Denoiser
from metrics.detectors._derivatives import along
from metrics.detectors.curvature_map import CurvatureMap
from metrics.detectors.score_shift import ScoreShift
from metrics.detectors.sharpness import Sharpness

SHAPE = (CHANNELS, SIDE, SIDE)
ALL = [Sharpness(), CurvatureMap(probes=3), ScoreShift()]


def matrix(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(DIMENSIONS) + torch.randn(DIMENSIONS, DIMENSIONS, generator=generator) / 8


def wavy(scaled, signal, captions):
    """Not linear, and another field for every caption."""
    return (
        torch.sin(scaled * (1 + shaped(captions)) + scaled.roll(1, -1))
        * (1 - shaped(signal)).sqrt()
    )


def starting(denoiser, seen):
    seeds = [int(seed) for seed in seen.seeds.ravel()]
    return denoiser.start(denoiser.initial_latents(seeds))[0].flatten(1).double()


def test_sharpness_of_a_linear_gap_is_its_square():
    empty, own = matrix(1), matrix(2)
    denoiser = analytic(linear(empty, own), steps=6)
    seen = observe(denoiser, ["1"], 3)
    gap = (own - empty).double()
    expected = (starting(denoiser, seen) @ (gap @ gap).T).norm(dim=1) / float(
        1 - denoiser.alphas[0]
    )
    found = Sharpness().score(seen)
    np.testing.assert_allclose(found, expected[None], rtol=1e-5)
    np.testing.assert_allclose(Sharpness(squared=True).score(seen), found**2)


def test_sharpness_agrees_with_finite_differences():
    denoiser = analytic(wavy, steps=6)
    seen = observe(denoiser, ["1"], 2)
    place = starting(denoiser, seen).reshape(-1, *SHAPE)
    signal = denoiser.alphas[:1].double()

    def score(place):  # of the captions 1 and 0, in float64
        both = [wavy(place, signal, torch.tensor([caption])) for caption in (1.0, 0.0)]
        return -(both[0] - both[1]) / (1 - signal).sqrt()

    step = 1e-5 * score(place)
    expected = ((score(place + step) - score(place - step)) / 2e-5).flatten(1).norm(dim=1)
    np.testing.assert_allclose(Sharpness().score(seen), expected[None], rtol=1e-4)


def test_without_a_gap_there_is_nothing():
    denoiser = analytic(gaussian(0.5), steps=4)
    for detector in ALL:
        seen = observe(denoiser, ["1", "0"], 2, detector.recorders())
        np.testing.assert_array_equal(detector.score(seen), np.zeros((2, 2)))


def test_the_curvature_of_a_diagonal_gap_is_exact():
    diagonal = torch.linspace(-1, 2, DIMENSIONS)
    empty, own = torch.eye(DIMENSIONS), torch.eye(DIMENSIONS) + torch.diag(diagonal)
    detector = CurvatureMap(probes=1)
    seen = observe(analytic(linear(empty, own), steps=4), ["1"], 2, detector.recorders())
    expected = diagonal.reshape(SHAPE).sum(0).clamp_min(0).mean()
    np.testing.assert_allclose(detector.score(seen), float(expected), rtol=1e-5)


def test_a_memorized_picture_is_curved_and_the_other_way_round_is_not():
    place = torch.linspace(-1, 1, DIMENSIONS).reshape(SHAPE)
    detector = CurvatureMap(probes=2)
    denoiser = analytic(point(place), steps=4)
    sigma = float(1 - denoiser.alphas[-1]) ** 0.5
    found = detector.score(observe(denoiser, ["0", "1"], 1, detector.recorders()))
    np.testing.assert_allclose(found[:, 0], [0, CHANNELS * (1 / sigma - sigma)], rtol=1e-4)
    narrow, wide = torch.eye(DIMENSIONS) * 2, torch.eye(DIMENSIONS)
    turned = observe(analytic(linear(narrow, wide), steps=4), ["1"], 1, detector.recorders())
    assert (detector.score(turned) == 0).all()


def test_probes_average_to_the_diagonal():
    empty, own = matrix(1), matrix(2)
    gap = (own - empty).diagonal().reshape(SHAPE).sum(0) + 0
    detector = CurvatureMap(probes=400)
    seen = observe(analytic(linear(empty, own), steps=3), ["1"], 1, detector.recorders())
    np.testing.assert_allclose(detector.score(seen), float(gap.clamp_min(0).mean()), atol=0.08)


def test_score_shift_by_hand():
    empty, own = matrix(3), matrix(4)
    denoiser = analytic(linear(empty, own), steps=6)
    seen = observe(denoiser, ["1"], 3)
    kernel = (own.T @ own - empty.T @ empty).double()
    expected = (starting(denoiser, seen) @ kernel).square().sum(1)
    np.testing.assert_allclose(ScoreShift().score(seen), expected[None], rtol=1e-4)


@pytest.mark.parametrize("detector", ALL)
def test_batches_do_not_matter(detector):
    scores = []
    for size in (1, 8):
        denoiser = analytic(wavy, steps=4)
        denoiser.batch_size = size
        scores.append(detector.score(observe(denoiser, ["1", "2"], 3, detector.recorders())))
    np.testing.assert_allclose(*scores, rtol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("detector", ALL)
def test_the_real_layers(detector, prediction):
    from bench.testbed.tiny import build_tiny_pipeline

    pipe = build_tiny_pipeline(prediction_type=prediction)
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    denoiser = Denoiser(pipe, steps=2, guidance_scale=4.0, batch_size=2)
    seen = observe(denoiser, ["a red apple"], 2, detector.recorders())
    counted = denoiser.evaluations
    found = detector.score(seen)
    assert found.shape == (1, 2) and (found > 0).all() and np.isfinite(found).all()
    counted = (denoiser.evaluations - counted) / 2
    # A forward derivative passes through the model with the evaluation that it is of.
    assert counted == detector.rows(2)[1] - 2 * isinstance(detector, Sharpness)
    assert all(torch.equal(before[name], found) for name, found in pipe.unet.state_dict().items())
    assert all(
        parameter.grad is None and not parameter.requires_grad
        for parameter in pipe.unet.parameters()
    )
    denoiser.close()


def test_both_derivatives_agree_on_the_real_layers(tiny_pipe, monkeypatch):
    denoiser = Denoiser(tiny_pipe, steps=2, guidance_scale=4.0)
    seen = observe(denoiser, ["a red apple"], 1)
    forward = Sharpness().score(seen)

    def refuse(*_):
        raise NotImplementedError("forward AD")

    monkeypatch.setattr(torch.func, "jvp", refuse)
    np.testing.assert_allclose(Sharpness().score(seen), forward, rtol=1e-3)
    denoiser.close()


def test_half_precision_is_left_for_the_derivative_and_comes_back():
    from bench.testbed.tiny import build_tiny_pipeline

    pipe = build_tiny_pipeline()
    whole = Denoiser(pipe, steps=2, guidance_scale=4.0)
    expected = Sharpness().score(observe(whole, ["a red apple"], 1))
    whole.close()
    pipe.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    denoiser = Denoiser(pipe, steps=2, guidance_scale=4.0)
    found = Sharpness().score(observe(denoiser, ["a red apple"], 1))
    np.testing.assert_allclose(found, expected, rtol=0.5)
    for name, tensor in pipe.unet.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, before[name])
    denoiser.close()


def test_along_is_a_directional_derivative():
    place, direction = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    torch.testing.assert_close(along(lambda x: x**2, place, direction), 2 * place * direction)
