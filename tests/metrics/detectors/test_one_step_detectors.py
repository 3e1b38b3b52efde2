"""Detectors that evaluate the model at noise alone: anisotropy, and pictures of one step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analytic import CHANNELS, DIMENSIONS, SIDE, analytic, constant, gaussian, linear, point
from observing import observe
from PIL import Image

from bench import Unmeasurable
from bench.diffusion.denoiser import Denoiser
from conftest import build_tiny_pipeline
from metrics.detectors._one_step import one_step
from metrics.detectors._recorders import DifferenceNorms
from metrics.detectors.anisotropy import Anisotropy
from metrics.detectors.onestep_edge import OnestepEdge, edges, shared
from metrics.detectors.onestep_white import OnestepWhite

SHAPE = (CHANNELS, SIDE, SIDE)
PROMPTS = ("a red apple", "a picture of a fox and a key", "tent by quilo marn")


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def highest_level(denoiser):
    signal = float(denoiser.pipe.scheduler.alphas_cumprod[-1])
    return signal, ((1 - signal) / signal) ** 0.5


# --- anisotropy


@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.parametrize("cosine", ["channel", "global"])
def test_anisotropy_by_hand_on_a_linear_field(cosine, steps):
    first, second = drawn(0, DIMENSIONS, DIMENSIONS) / 9, drawn(1, DIMENSIONS, DIMENSIONS) / 9
    denoiser = analytic(linear(first, second), steps)
    seen = observe(denoiser, ["1"], 3, [DifferenceNorms()])
    scores = Anisotropy(w_norm=1.5, w_cosine=-4, cosine=cosine).score(seen)
    for column in range(3):
        noise = denoiser.initial_latents([int(seen.seeds[0, column])])[0].flatten()
        unconditional = (first @ noise).reshape(SHAPE)
        difference = (second @ noise).reshape(SHAPE) - unconditional
        if cosine == "global":
            value = float((difference * unconditional).sum())
            value /= float(difference.norm() * unconditional.norm())
        else:
            value = 0.0
            for i in range(SIDE):
                for j in range(SIDE):
                    a, b = difference[:, i, j], unconditional[:, i, j]
                    value += float(a @ b / (a.norm() * b.norm())) / SIDE**2
        expected = 1.5 * float(difference.norm()) - 4 * value
        assert scores[0, column] == pytest.approx(expected, rel=1e-4)


def test_the_cosine_is_taken_third_from_last_on_the_same_noise():
    asked = []

    def noise(scaled, signal, conditions):
        asked.append((round(float(signal[0]), 6), scaled.clone(), conditions.tolist()))
        return scaled * (1 + conditions.reshape(-1, 1, 1, 1))

    denoiser = analytic(noise, steps=10)
    seen = observe(denoiser, ["1", "2"], 2, [DifferenceNorms()])
    asked.clear()
    before = denoiser.rows
    scores = Anisotropy(w_norm=0, w_cosine=1).score(seen)
    np.testing.assert_allclose(scores, 1, rtol=1e-6)  # what a prompt adds is parallel
    [(signal, scaled, conditions)] = asked
    assert signal == round(float(denoiser.alphas[7]), 6) and conditions == [0, 0, 0, 0, 1, 1, 2, 2]
    assert torch.equal(scaled[:4], denoiser.initial_latents(seen.seeds.flatten().tolist()))
    assert denoiser.rows - before == Anisotropy().rows(10)[1] * 4
    assert Anisotropy().rows(10) == (4, 2)


def test_a_model_that_ignores_the_prompt_has_no_cosine():
    seen = observe(analytic(gaussian()), ["1"], 2, [DifferenceNorms()])
    for cosine in ("channel", "global"):
        assert not Anisotropy(cosine=cosine).score(seen).any()


# --- one step


def test_one_step_reaches_a_memorized_picture_without_guidance():
    place = drawn(3, *SHAPE)
    denoiser = analytic(point(place), guidance=1.0)
    request = denoiser.request(["1", "1"], [4, 5])
    picture, moved = one_step(denoiser, request)
    _, sigma = highest_level(denoiser)
    # The way there is some 15 units long, and so is what float32 rounds.
    torch.testing.assert_close(picture, place.expand(2, -1, -1, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(picture - moved, sigma * request.latents, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
def test_the_white_score_of_a_memorized_picture_is_its_closed_form(guidance):
    place = drawn(3, *SHAPE)
    denoiser = analytic(point(place), guidance=guidance)
    seen = observe(denoiser, ["1"], 3)
    signal, sigma = highest_level(denoiser)
    scores = OnestepWhite().score(seen)
    for column in range(3):
        n = denoiser.initial_latents([int(seen.seeds[0, column])])[0].double()
        start = sigma * n
        # For N(0, I) the denoised picture is z / (sigma^2 + 1), and signal is 1 / (sigma^2 + 1).
        denoised = signal * start + guidance * (place.double() - signal * start)
        expected = float((start - denoised).square().mean())
        assert scores[0, column] == pytest.approx(expected, rel=1e-4)


def test_the_white_score_of_a_constant_field():
    noise = drawn(4, *SHAPE)
    denoiser = analytic(constant(noise, noise), guidance=9.0)
    _, sigma = highest_level(denoiser)
    scores = OnestepWhite().score(observe(denoiser, ["1", "2"], 2))
    # whatever the seed, the caption and the guidance
    np.testing.assert_allclose(scores, sigma**2 * float(noise.square().mean()), rtol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_one_step_is_that_of_the_karras_view(prediction_type):
    """k-diffusion's denoisers by their own formulas, from what the UNet itself predicts."""
    pipe = build_tiny_pipeline(prediction_type=prediction_type)
    denoiser = Denoiser(pipe, 3, 4.0)
    request = denoiser.request(PROMPTS[:2], [1, 2])
    picture, moved = one_step(denoiser, request)
    _, sigma = highest_level(denoiser)
    start = sigma * request.latents
    with torch.no_grad():
        predicted = [
            pipe.unet(start / (sigma**2 + 1) ** 0.5, 999, encoder_hidden_states=texts).sample
            for texts in (request.null_embeddings, request.embeddings)
        ]
    if prediction_type == "epsilon":
        unconditional, conditional = (start - sigma * noise for noise in predicted)
    else:
        unconditional, conditional = (
            start / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * velocity
            for velocity in predicted
        )
    denoised = unconditional + 4.0 * (conditional - unconditional)
    denoiser.close()
    torch.testing.assert_close(picture, denoised, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(moved, denoised - start, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_step_scores_do_not_depend_on_the_batch(tiny_pipe, batch_size):
    scores = []
    for size in (8, batch_size):
        denoiser = Denoiser(tiny_pipe, 3, 4.0, size)
        seen = observe(denoiser, PROMPTS, 2, [DifferenceNorms()])
        before = denoiser.rows
        white = OnestepWhite().score(seen)
        assert denoiser.rows - before == 2 * 6 == OnestepWhite().rows(3)[0] * 6
        scores.append((white, Anisotropy().score(seen), OnestepEdge().score(seen)))
        assert OnestepEdge().rows(3) == (2, 2)
        denoiser.close()
    (white, anisotropy, edge), (other_white, other_anisotropy, other_edge) = scores
    assert white.shape == anisotropy.shape == (3, 2) and edge.shape == (3, 1)
    np.testing.assert_allclose(other_white, white, rtol=1e-5)
    np.testing.assert_allclose(other_anisotropy, anisotropy, rtol=1e-5)
    # A byte that rounds the other way may move a pixel over the threshold of an edge.
    np.testing.assert_allclose(other_edge, edge, atol=2e-3)


def test_a_model_trained_on_pure_noise_has_no_step():
    denoiser = analytic(gaussian())
    denoiser.pipe.scheduler.alphas_cumprod[-1] = 0
    with pytest.raises(Unmeasurable, match="pure noise"):
        OnestepWhite().score(observe(denoiser, ["1"], 1))


# --- edges


def sobel(pixels, axis):
    """Differences along one axis, smoothed along both others, with repeated borders."""
    padded = np.pad(pixels, 1, mode="symmetric")
    total = np.zeros_like(pixels)
    for offset in np.ndindex(3, 3, 3):
        weight = 1
        for dimension, place in enumerate(offset):
            weight *= (-1, 0, 1)[place] if dimension == axis else (1, 2, 1)[place]
        part = tuple(slice(o, o + n) for o, n in zip(offset, pixels.shape))
        total += weight * padded[part]
    return total


def test_edges_against_the_filter_by_hand():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.LANCZOS))
    pixels = small.astype(np.float64) / 255
    strength = np.sqrt(sobel(pixels, 0) ** 2 + sobel(pixels, 1) ** 2).sum(2)
    clear = np.abs(strength - 1.5) > 1e-4
    assert clear.mean() > 0.99 and 0.1 < (strength > 1.5).mean() < 0.99
    assert np.array_equal(edges(picture)[clear], (strength > 1.5)[clear])


def test_a_pixel_is_shared_by_more_than_half():
    votes = np.array([[0, 1], [2, 3]])
    assert shared(votes, 4) == 0.25 and shared(votes, 3) == 0.5 and shared(votes, 5) == 0.25


def decoding(pictures):
    """A model whose n-th picture decodes to the n-th of these."""
    denoiser = analytic(gaussian())
    left = iter(pictures)
    denoiser.decode = lambda latents: np.stack([next(left) for _ in latents])
    return denoiser


def test_equal_pictures_share_all_their_edges_and_different_ones_few():
    random = np.random.default_rng(1)
    # Single pixels of noise have edges everywhere, so the pictures are made of a few lines.
    lines = np.zeros((5, 256, 256, 3), np.uint8)
    for one in lines:
        one[random.integers(10, 246)] = 255
    denoiser = decoding([*[lines[0]] * 4, *lines[1:]])
    scores = OnestepEdge().score(observe(denoiser, ["1", "2"], 4))
    assert scores[0, 0] == edges(lines[0]).mean() > 0
    assert scores[1, 0] == 0


def test_edges_do_not_mix_prompts_in_a_batch():
    random = np.random.default_rng(2)
    pictures = random.integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)
    denoiser = decoding(pictures)
    denoiser.batch_size = 4
    scores = OnestepEdge().score(observe(denoiser, ["1", "2"], 3))
    for row in range(2):
        votes = sum(edges(one).astype(int) for one in pictures[3 * row : 3 * row + 3])
        assert scores[row, 0] == np.mean(votes >= 2)


def test_edges_of_a_memorized_picture_are_the_same_for_every_seed():
    denoiser = analytic(point(drawn(3, *SHAPE)), guidance=1.0)

    def decode(latents):
        # the latents' first channel as grey squares, rounded coarsely
        grey = (latents[:, 0] * 50 + 128).clamp(0, 255).round(decimals=-1)
        squares = grey.repeat_interleave(64, 1).repeat_interleave(64, 2)
        return squares[..., None].expand(-1, -1, -1, 3).byte().numpy()

    denoiser.decode = decode
    seen = observe(denoiser, ["1"], 4)
    first = decode(one_step(denoiser, denoiser.request(["1"], [0]))[0])[0]
    assert OnestepEdge().score(seen)[0, 0] == edges(first).mean() > 0


def test_one_seed_shares_nothing():
    with pytest.raises(Unmeasurable, match="only one"):
        OnestepEdge().score(observe(SimpleNamespace(), ["1"], 1))
