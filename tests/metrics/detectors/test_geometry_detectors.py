"""The sphere's criterion against closed forms, and the detectors that are made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import CHANNELS, DIMENSIONS, SIDE, analytic, constant, gaussian, linear, point, shaped
from observing import observe

from bench import Unmeasurable
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser, trajectory
from bench.diffusion.request import classifier_free_guidance
from bench.running.sampling import sample
from metrics.detectors._conditional_shifts import ConditionalShifts
from metrics.detectors._final_latents import CleanEstimates, FinalLatents, LastInput
from metrics.detectors._sphere import convergence, directions
from metrics.detectors.dsm import Dsm
from metrics.detectors.geometry_gap import GeometryGap
from metrics.detectors.plaplace import Plaplace

SHAPE = (CHANNELS, SIDE, SIDE)


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a1(field, centres, signal, count=64, p=1, batch_size=16):
    """Of a field of `analytic`, for its caption 0."""

    def noise(points):
        rows = len(points)
        return field(points, torch.full((rows,), signal), torch.zeros(rows))

    around = directions(count, centres.shape[1:], 0)
    return convergence(noise, centres, signal, around, batch_size, p)


def test_directions_are_opposite_pairs_of_norm_one():
    found = directions(6, SHAPE, 3)
    assert torch.equal(found[:3], -found[3:])
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(6))
    assert torch.equal(found, directions(6, SHAPE, 3))
    assert not torch.equal(found, directions(6, SHAPE, 4))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))  # of an image
    assert abs(float(torch.cosine_similarity(found[0].flatten(), noise.flatten(), 0))) < 0.9


@pytest.mark.parametrize("variance", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("signal", [0.2, 0.9])
def test_pictures_of_a_gaussian(variance, signal):
    # Many dimensions, because the closed form is of infinitely many.
    typical = variance**0.5 * drawn(0, 8, 4, 32, 32)
    found = a1(gaussian(variance), typical, signal)
    expected = ((1 - signal) / (signal * variance + 1 - signal)) ** 0.5
    torch.testing.assert_close(found, torch.full((8,), expected), atol=0.02, rtol=0)
    mode = torch.zeros(2, *SHAPE)
    torch.testing.assert_close(a1(gaussian(variance), mode, signal), torch.ones(2))


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_flat_support_shows_its_dimension(share):
    size, signal = 4 * 32 * 32, 1 - 1e-4
    flat = torch.arange(size) < share * size  # the support: these coordinates, of variance 1

    def field(points, _, __):
        variance = torch.where(flat, signal + 1 - signal, 1 - signal).reshape(points.shape[1:])
        return (1 - signal) ** 0.5 * points / variance

    centre = torch.where(flat, drawn(1, size), 0).reshape(1, 4, 32, 32)
    found = float(a1(field, centre, signal))
    assert found == pytest.approx((1 - share) ** 0.5, abs=0.02)
    assert size * (1 - found**2) == pytest.approx(share * size, rel=0.06)


def test_a_point_mass_is_one_and_every_value_within_one():
    place = drawn(2, *SHAPE)
    field = point(place)

    def noise(points, signal, _):
        return field(points, signal, torch.ones(len(points)))

    torch.testing.assert_close(a1(noise, place[None], 0.999), torch.ones(1))
    assert bool((a1(noise, place[None], 0.999) <= 1).all())
    # and at a small noise also one of several pictures
    other = point(drawn(3, *SHAPE))

    def mixture(points, signal, _):
        a = shaped(signal)
        both = torch.stack(
            [noise(points, signal, 0), other(points, signal, torch.ones(len(points)))]
        )
        weights = (-both.square().flatten(2).sum(2) / 2).softmax(0)
        return (weights[..., None, None, None] * both).sum(0) * (a / a)

    torch.testing.assert_close(a1(mixture, place[None], 0.999), torch.ones(1))


def test_a_constant_field_is_exactly_zero():
    pull = drawn(4, *SHAPE)
    for p in (1, 2):
        found = a1(constant(pull, pull), drawn(5, 3, *SHAPE), 0.3, p=p)
        assert torch.equal(found, torch.zeros(3))
    assert torch.equal(a1(constant(0 * pull, pull), drawn(5, 1, *SHAPE), 0.3), torch.zeros(1))


def test_size_matters_to_the_flux_alone():
    field, centres = gaussian(0.5), drawn(6, 3, *SHAPE)

    def larger(points, signal, captions):
        return 7.3 * field(points, signal, captions)

    torch.testing.assert_close(a1(field, centres, 0.4), a1(larger, centres, 0.4))
    torch.testing.assert_close(7.3 * a1(field, centres, 0.4, p=2), a1(larger, centres, 0.4, p=2))


def test_the_flux_of_a_linear_field_is_its_trace():
    matrix, signal = drawn(7, DIMENSIONS, DIMENSIONS) / 8, 0.3
    matrix += torch.diag(torch.linspace(0.5, 1.5, DIMENSIONS))
    found = a1(
        linear(matrix, matrix), drawn(8, 2, *SHAPE), signal, count=20_000, p=2, batch_size=5000
    )
    radius = ((1 - signal) * DIMENSIONS) ** 0.5
    expected = radius / DIMENSIONS * float(matrix.trace())
    torch.testing.assert_close(found, torch.full((2,), expected), atol=0.03 * expected, rtol=0)
    # Opposite pairs leave nothing of the centre.
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)


def test_recorders_keep_clean_estimates():
    denoiser = analytic(gaussian(0.5), steps=4)
    recorders = (FinalLatents(), CleanEstimates(steps=(0, 3, 9)), LastInput())
    seen = observe(denoiser, ["1", "2"], 2, recorders)
    final, clean, last = (seen.trace(recorder) for recorder in recorders)
    assert final.shape == (2, 2, *SHAPE) and clean.shape == (2, 2, 3, *SHAPE)
    np.testing.assert_array_equal(clean[:, :, 1], final)  # the last of four steps
    np.testing.assert_array_equal(clean[:, :, 2], final)  # and what lies beyond
    request = denoiser.request(["1"], [int(seen.seeds[0, 0])])
    scaled, _ = denoiser.start(request.latents)
    a = float(denoiser.alphas[0])
    noise = denoiser.epsilon(scaled, denoiser.timesteps[0], request.embeddings)
    torch.testing.assert_close(
        torch.tensor(clean[0, 0, 0]), ((scaled - (1 - a) ** 0.5 * noise) / a**0.5)[0]
    )
    # The sampler ends a little before its own estimate.
    sampled = sample(denoiser, request, Method(), {})[0]
    assert 0 < float((sampled - torch.tensor(final[0, 0])).abs().max()) < 0.2
    a = float(denoiser.alphas[-1])
    noise = (torch.tensor(last[0, 0]) - a**0.5 * torch.tensor(final[0, 0])) / (1 - a) ** 0.5
    assert torch.isfinite(noise).all()


def test_plaplace_of_a_gaussian_and_of_a_point():
    detector = Plaplace(directions=16, timestep=500)
    place = drawn(9, *SHAPE)
    denoiser = analytic(point(place), steps=10, guidance=1.0)
    seen = observe(denoiser, ["1"], 2, detector.recorders())
    before = denoiser.evaluations
    clean, own = detector.score(seen), Plaplace(conditional=True).score(seen)
    assert denoiser.evaluations - before == 2 * 2 * detector.rows(10)[1]
    np.testing.assert_allclose(own, 1, atol=1e-5)
    assert clean.shape == (1, 2) and (np.abs(clean) <= 1).all() and (clean < 0.95).all()
    # N(0, I): sigma over one, with the exact length of this picture
    a = float(denoiser.pipe.scheduler.alphas_cumprod[500])
    np.testing.assert_allclose(clean, (1 - a) ** 0.5, atol=0.15)


def test_plaplace_two_is_the_flux_of_the_score():
    variance, detector = 0.5, Plaplace(p=2, directions=2, timestep=300)
    denoiser = analytic(gaussian(variance), steps=5)
    found = detector.score(observe(denoiser, ["1"], 3, detector.recorders()))
    a = float(denoiser.pipe.scheduler.alphas_cumprod[300])
    radius, precision = ((1 - a) * DIMENSIONS) ** 0.5, 1 / (a * variance + 1 - a)
    np.testing.assert_allclose(found, radius * precision, rtol=1e-4)  # -A_2 = R / d tr Lambda


def test_the_gap_is_one_at_a_memorized_picture_and_zero_without_a_prompt():
    place = drawn(10, *SHAPE)
    denoiser = analytic(point(place), steps=10, guidance=1.0)
    detector = GeometryGap()
    seen = observe(denoiser, ["0", "1"], 2, detector.recorders())
    before = denoiser.evaluations
    found = detector.score(seen)
    assert denoiser.evaluations - before == 4 * detector.rows(10)[1] == 4 * 2 * 16 * 3
    assert detector.rows(10) == (2 * 7 + 96, 96) and detector.rows(3) == (2 * 3 + 96, 96)
    np.testing.assert_array_equal(found[0], 0)
    # e_c - e_u = (y - sqrt(a) x) / sigma - sigma y, at y = sqrt(a) x + radius e
    expected = []
    around = directions(16, SHAPE, 0)
    for index in detector.at:
        a = float(denoiser.alphas[index])
        y = a**0.5 * place + ((1 - a) * DIMENSIONS) ** 0.5 * around
        gap = (y - a**0.5 * place) / (1 - a) ** 0.5 - (1 - a) ** 0.5 * y
        expected.append(float(torch.cosine_similarity(gap.flatten(1), around.flatten(1)).mean()))
    np.testing.assert_allclose(found[1], np.mean(expected), atol=1e-3)
    constant_gap = analytic(constant(drawn(1, *SHAPE), drawn(2, *SHAPE)), steps=10)
    assert (detector.score(observe(constant_gap, ["1"], 1, detector.recorders())) == 0).all()


@pytest.mark.parametrize("detector", [Plaplace(), Plaplace(p=2, conditional=True), GeometryGap()])
def test_batches_do_not_matter(detector):
    matrices = [torch.eye(DIMENSIONS) + drawn(seed, DIMENSIONS, DIMENSIONS) / 20 for seed in (1, 2)]
    scores = []
    for size in (1, 8):
        denoiser = analytic(linear(*matrices), steps=8)
        denoiser.batch_size = size
        scores.append(detector.score(observe(denoiser, ["1", "0"], 3, detector.recorders())))
    np.testing.assert_allclose(*scores, atol=1e-6, rtol=1e-5)


def test_dsm_by_hand():
    matrices = [
        torch.eye(DIMENSIONS) / 2,
        torch.eye(DIMENSIONS) + drawn(3, DIMENSIONS, DIMENSIONS) / 20,
    ]
    denoiser = analytic(linear(*matrices), steps=5)
    seen = observe(denoiser, ["1", "1"], 2, (ConditionalShifts(),))
    seen_by_step = []
    request = denoiser.request(["1"], [int(seen.seeds[1, 0])])
    trajectory(
        denoiser,
        request,
        classifier_free_guidance,
        watch=lambda step, scaled, guided: seen_by_step.append(step.conditional.double()),
    )
    for number, detector in enumerate((Dsm(pair="01"), Dsm())):
        expected = float((seen_by_step[number + 1] - seen_by_step[number]).square().sum())
        found = detector.score(seen)
        assert found.shape == (2, 2) and found[1, 0] == pytest.approx(expected, rel=1e-5)
    assert Dsm(pair="01").rows(50) == (3, 0) and Dsm().rows(50) == (5, 0)
    short = observe(analytic(linear(*matrices), steps=2), ["1"], 1, (ConditionalShifts(),))
    assert Dsm(pair="01").score(short).shape == (1, 1)
    with pytest.raises(Unmeasurable, match="at least 3 steps"):
        Dsm().score(short)
    shortest = observe(analytic(linear(*matrices), steps=1), ["1"], 1, (ConditionalShifts(),))
    with pytest.raises(Unmeasurable, match="at least 2 steps"):
        Dsm(pair="01").score(shortest)


def test_the_real_layers(tiny_pipe):
    for detector in (Plaplace(directions=2), GeometryGap(directions=2, at=(0, 9))):
        denoiser = Denoiser(tiny_pipe, steps=3, guidance_scale=4.0, batch_size=2)
        found = detector.score(observe(denoiser, ["a red apple"], 2, detector.recorders()))
        assert np.isfinite(found).all() and (np.abs(found) <= 1).all()
        denoiser.close()
