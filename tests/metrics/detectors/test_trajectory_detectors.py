"""What detectors read of a run: norms, attention to tokens, and the end token's attention."""

from __future__ import annotations

import weakref
from dataclasses import replace
from math import log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analytic import CHANNELS, DIMENSIONS, SIDE, analytic, constant, gaussian, linear
from observing import observe

from bench import Unmeasurable, UserError, trajectory
from bench.contracts.detector import Moment
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.request import classifier_free_guidance
from bench.running.recording import Recording
from bench.running.sampling import sample
from conftest import build_tiny_pipeline
from metrics.detectors._recorders import (
    BrightEnding,
    DifferenceNorms,
    TokenMarginals,
    enlarged,
    last_part,
)
from metrics.detectors.attention_entropy import AttentionEntropy
from metrics.detectors.bright_ending import BrightEnding as BrightEndingDetector
from metrics.detectors.energy import Energy
from metrics.detectors.tiled_l2 import TiledL2
from metrics.detectors.wen_score import WenScore

SHAPE = (CHANNELS, SIDE, SIDE)
RECORDERS = (DifferenceNorms(), TokenMarginals(), BrightEnding())
PROMPTS = ("a red apple", "a picture of a fox and a key", "tent by quilo marn")


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def recorded(denoiser, prompts, seeds, recorders):
    """What recorders keep of one batch, and its latents."""
    request = denoiser.request(prompts, seeds)
    recording = Recording(denoiser, request, recorders)
    latents = sample(denoiser, request, Method(), {}, recording)
    return recording.results(), latents


def driven(recorder, differences, maps, ends):
    """What a recorder keeps of steps that are given: `differences` `[S, B, C, h, w]`, and `maps`, a
    list of layers' `[S, B, heads, pixels, tokens]`.
    """
    memory = {}
    recorder.begin(SimpleNamespace(lengths=torch.tensor(ends) + 1), memory)
    for index, difference in enumerate(differences):
        for layer, attention in enumerate(maps):
            recorder.attended(index, layer, attention[index], memory)
        noise = drawn(index, *difference.shape)
        moment = Moment(
            index, len(differences), 0, 0.5, noise, noise, noise + difference, noise, None
        )
        recorder.saw(moment, memory)
    return recorder.result(memory)


# --- norms


def test_a_model_that_ignores_the_prompt_scores_zero():
    denoiser = analytic(gaussian(2.0), steps=4)
    seen = observe(denoiser, ["1", "2"], 2, [DifferenceNorms()])
    for detector in (WenScore(), WenScore(steps=0), Energy()):
        assert not detector.score(seen).any()


def test_a_constant_difference_has_its_norm_at_every_step():
    difference = drawn(0, *SHAPE)
    denoiser = analytic(constant(drawn(1, *SHAPE), drawn(1, *SHAPE) + difference), steps=3)
    seen = observe(denoiser, ["1"], 2, [DifferenceNorms()])
    expected = float(difference.norm())
    for steps in (0, 1, 2, 50):
        np.testing.assert_allclose(WenScore(steps=steps).score(seen), expected, rtol=1e-6)
    np.testing.assert_allclose(Energy().score(seen), expected**2, rtol=1e-6)


def test_a_linear_field_gives_the_norm_of_its_difference_on_the_way():
    first, second = drawn(0, DIMENSIONS, DIMENSIONS) / 9, drawn(1, DIMENSIONS, DIMENSIONS) / 9
    denoiser = analytic(linear(first, second), steps=3)
    seen = observe(denoiser, ["1"], 2, [DifferenceNorms()])
    expected = np.zeros((2, 3))
    for column in range(2):
        # DDIM by hand, from level to level, with guidance 3
        x = denoiser.initial_latents([int(seen.seeds[0, column])])[0].flatten().double()
        last = denoiser.new_scheduler().final_alpha_cumprod
        levels = [float(a) for a in (*denoiser.alphas, last)]
        for index in range(3):
            now, following = levels[index], levels[index + 1]
            unconditional, conditional = first.double() @ x, second.double() @ x
            expected[column, index] = float((conditional - unconditional).norm())
            noise = unconditional + 3 * (conditional - unconditional)
            clean = (x - (1 - now) ** 0.5 * noise) / now**0.5
            x = following**0.5 * clean + (1 - following) ** 0.5 * noise
    np.testing.assert_allclose(seen.trace(DifferenceNorms())[0], expected, rtol=1e-4)
    np.testing.assert_allclose(WenScore(steps=2).score(seen)[0], expected[:, :2].mean(1), rtol=1e-4)
    np.testing.assert_allclose(Energy().score(seen)[0], expected[:, 0] ** 2, rtol=1e-4)


def test_energy_ranks_single_images_as_wen_does():
    field = linear(torch.eye(DIMENSIONS), drawn(2, DIMENSIONS, DIMENSIONS))
    seen = observe(analytic(field, steps=2), ["1", "2", "3"], 1, [DifferenceNorms()])
    assert np.array_equal(Energy().score(seen).argsort(0), WenScore().score(seen).argsort(0))


@pytest.mark.parametrize(
    "detector, rows",
    [
        (WenScore(), (2, 0)),
        (WenScore(steps=5), (10, 0)),
        (WenScore(steps=0), (40, 0)),
        (WenScore(steps=99), (40, 0)),
        (Energy(), (2, 0)),
        (AttentionEntropy(), (40, 0)),
        (BrightEndingDetector(), (40, 0)),
        (TiledL2(), (40, 0)),
    ],
)
def test_what_detectors_cost_of_twenty_steps(detector, rows):
    assert detector.rows(20) == rows


# --- what is kept of a run


def test_recording_changes_no_picture_by_a_bit(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, 3, 4.0)
    request = denoiser.request(PROMPTS, [1, 2, 3])
    with torch.no_grad():
        plain = trajectory(denoiser, request, classifier_free_guidance)
    _, latents = recorded(denoiser, PROMPTS, [1, 2, 3], RECORDERS)
    denoiser.close()
    assert torch.equal(plain, latents)


def test_what_is_kept_does_not_depend_on_the_batch(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, 3, 4.0)
    together, _ = recorded(denoiser, PROMPTS, [1, 2, 3], RECORDERS)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = recorded(denoiser, [prompt], [row + 1], RECORDERS)
        for recorder in RECORDERS:
            torch.testing.assert_close(
                together[recorder][row], alone[recorder][0], atol=1e-6, rtol=1e-5
            )
    denoiser.close()


MAPS, ALIVE = list[weakref.ref](), list[int]()


class Watching(TokenMarginals):
    """Keeps marginals, and counts how many layers' maps are alive when the next one comes."""

    def attended(self, index, layer, probabilities, memory):
        ALIVE.append(sum(kept() is not None for kept in MAPS))
        MAPS.append(weakref.ref(probabilities))
        super().attended(index, layer, probabilities, memory)


def test_the_map_of_a_layer_is_gone_before_that_of_the_next_is_made():
    """So the peak of memory is one map however many layers there are: those of Stable Diffusion
    have sixteen.
    """
    pipe = build_tiny_pipeline(coarse_attention=True)
    pipe.unet = type(pipe.unet).from_config({**pipe.unet.config, "layers_per_block": 4}).eval()
    layers = [name for name, _ in pipe.unet.named_modules() if name.endswith("attn2")]
    assert len(layers) >= 16
    denoiser, watching = Denoiser(pipe, 3, 4.0), Watching()
    kept, _ = recorded(denoiser, PROMPTS, [1, 2, 3], [watching])
    denoiser.close()
    assert len(ALIVE) == 2 * len(layers) and not any(ALIVE)
    assert kept[watching].shape[:3] == (3, 2, len(layers))
    assert kept[watching].numel() * 4 < 2**16


def test_scores_of_a_run_cost_nothing_and_fit_their_shape(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, 2, 4.0)
    seen = observe(denoiser, PROMPTS, 2, RECORDERS)
    before = denoiser.evaluations
    for detector in (WenScore(), Energy(), AttentionEntropy(), BrightEndingDetector()):
        assert set(detector.recorders()) <= set(RECORDERS)
        scores = detector.score(seen)
        assert scores.shape == (3, 2) and scores.dtype == np.float64
        assert np.isfinite(scores).all() and (scores > 0).all()
    assert denoiser.evaluations == before
    denoiser.close()


# --- attention to tokens


def test_marginals_are_those_of_the_layers_own_attention(tiny_pipe):
    """The oracle keeps every layer's input and asks the layer itself, one image at a time."""
    denoiser = Denoiser(tiny_pipe, 2, 4.0)
    layers = [one for name, one in tiny_pipe.unet.named_modules() if name.endswith("attn2")]
    inputs = []

    def keep(module, args, kwargs):
        inputs.append((module, args[0], kwargs["encoder_hidden_states"]))

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    found, _ = recorded(denoiser, PROMPTS[:2], [1, 2], [TokenMarginals()])
    for hook in hooks:
        hook.remove()
    denoiser.close()
    marginals = found[TokenMarginals()]
    tokens = tiny_pipe.tokenizer.model_max_length
    assert marginals.shape == (2, 2, len(layers), tokens)  # of two steps, the first and the last
    torch.testing.assert_close(marginals.sum(3), torch.ones(marginals.shape[:3]))

    assert len(inputs) == 2 * len(layers)
    for number, (module, hidden, texts) in enumerate(inputs):
        # The UNet runs its layers in another order than it holds them.
        step, place = number // len(layers), layers.index(module)
        for row in range(2):
            conditional = 2 + row
            query = module.head_to_batch_dim(module.to_q(hidden[conditional][None]))
            key = module.head_to_batch_dim(module.to_k(texts[conditional][None]))
            scores = module.get_attention_scores(query, key)  # [heads, pixels, tokens]
            torch.testing.assert_close(marginals[row, step, place], scores.mean((0, 1)))


@pytest.mark.parametrize("steps, part", [(1, 1), (4, 1), (5, 1), (6, 2), (10, 2), (50, 10)])
def test_the_last_fifth_is_rounded_up(steps, part):
    assert last_part(steps) == part
    maps = [torch.rand((steps, 2, 3, 4, 5), generator=torch.Generator().manual_seed(0))]
    kept = driven(TokenMarginals(), torch.zeros(steps, 2, *SHAPE), maps, [2, 3])
    assert kept.shape == (2, 1 + part, 1, 5)
    torch.testing.assert_close(kept[:, 0, 0], maps[0][0].mean((1, 2)))
    torch.testing.assert_close(kept[:, -1, 0], maps[0][-1].mean((1, 2)))
    torch.testing.assert_close(kept[:, 1, 0], maps[0][steps - part].mean((1, 2)))


def attending(marginals, lengths):
    """An observation of one image a prompt whose token marginals `[P, K, layers, tokens]` are
    given.
    """
    seen = observe(analytic(gaussian()), ["1"] * len(lengths), 1)
    model = SimpleNamespace(lengths=lambda prompts: torch.tensor(lengths))
    kept = np.asarray(marginals, np.float32)[:, None]
    return replace(seen, trace_=lambda recorder: kept, denoiser_=lambda: model)


@pytest.mark.parametrize("layers", ["pooled", "apart"])
def test_entropy_is_log_t_of_equal_attention_and_zero_of_attention_to_one(layers):
    tokens = 7
    equal = np.full((3, 2, tokens), 1 / tokens)
    one = np.zeros((3, 2, tokens))
    one[..., 0] = 1
    scores = AttentionEntropy(layers=layers).score(attending([equal, one], [4, 4]))
    np.testing.assert_allclose(scores, [[log(tokens)], [0]], atol=1e-6)


def test_entropy_by_hand_where_attention_moves_to_the_summary():
    # Four tokens: begin, a word, end, padding. The first step, then a last fifth of two steps.
    marginals = [[[1, 0, 0, 0]], [[0.5, 0, 0.5, 0]], [[0.25, 0.25, 0.25, 0.25]]]
    half, quarter = 0.5 * log(2), 0.25 * log(4)
    whole = (2 * half + 4 * quarter) / 2
    seen = attending([marginals], [3])
    assert AttentionEntropy().score(seen) == pytest.approx(whole + (half + 2 * quarter) / 2)
    only_padding = AttentionEntropy(summary="padding")
    assert only_padding.score(seen) == pytest.approx(whole + quarter / 2)
    # turned round, so that attention leaves the summary: the change counts without its sign
    back = attending([[marginals[2], marginals[0], marginals[0]]], [3])
    assert AttentionEntropy().score(back) == pytest.approx(2 * quarter)
    assert AttentionEntropy(absolute=False).score(back) == pytest.approx(-2 * quarter)


def test_entropy_knows_every_prompts_own_length():
    marginals = [[[0.4, 0.3, 0.2, 0.1]], [[0.1, 0.2, 0.3, 0.4]]]
    together = AttentionEntropy().score(attending([marginals] * 3, [2, 3, 4]))
    for row, length in enumerate([2, 3, 4]):
        assert together[row] == AttentionEntropy().score(attending([marginals], [length]))[0]
    full = AttentionEntropy(summary="padding").score(attending([marginals], [4]))
    assert full == pytest.approx(-sum(a * log(a) for a in (0.1, 0.2, 0.3, 0.4)))  # no padding


def test_layers_that_attend_to_different_tokens():
    marginals = [[[1, 0], [0, 1]]] * 2
    seen = attending([marginals], [3])
    assert AttentionEntropy(layers="pooled").score(seen) == pytest.approx(log(2))
    assert AttentionEntropy(layers="apart").score(seen) == pytest.approx(0)


# --- where the end token looks


def test_an_even_map_gives_the_norms_of_wen():
    differences = drawn(0, 3, 2, *SHAPE)
    maps = [torch.full((3, 2, 4, SIDE * SIDE, 6), 1 / 6), torch.full((3, 2, 4, 4, 6), 1 / 6)]
    found = driven(BrightEnding(), differences, maps, [2, 5])
    torch.testing.assert_close(found, driven(DifferenceNorms(), differences, [], [2, 5]))


def test_masked_norms_by_hand():
    differences = drawn(0, 3, 2, *SHAPE)
    maps = [drawn(1 + layer, 3, 2, 4, SIDE * SIDE, 6).softmax(-1) for layer in range(3)]
    ends = [2, 5]
    found = driven(BrightEnding(), differences, maps, ends)
    for row in range(2):
        mask = torch.zeros(SIDE * SIDE)
        for layer in range(2):  # the third layer does not count
            for head in range(4):
                mask += maps[layer][2, row, head, :, ends[row]] / 8  # of the last step
        for step in range(3):
            masked = differences[step, row] * mask.reshape(SIDE, SIDE)
            expected = masked.square().sum().sqrt() / mask.mean()
            torch.testing.assert_close(found[row, step], expected)


def test_no_difference_scores_zero():
    maps = [drawn(1, 3, 2, 4, SIDE * SIDE, 6).softmax(-1)]
    assert not driven(BrightEnding(), torch.zeros(3, 2, *SHAPE), maps, [2, 5]).any()


def test_bright_ending_averages_all_steps(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, 3, 4.0)
    seen = observe(denoiser, PROMPTS[:1], 2, RECORDERS)
    denoiser.close()
    kept = seen.trace(BrightEnding())
    assert kept.shape == (1, 2, 3)
    np.testing.assert_allclose(BrightEndingDetector().score(seen), kept.mean(2), rtol=1e-6)


def test_a_smaller_map_is_enlarged_and_one_of_another_size_refused():
    ramp = torch.tensor([[1.0, 1, 3, 3]])  # two rows of two
    assert torch.equal(enlarged(ramp, 2, 2), torch.tensor([[[1.0, 1], [3, 3]]]))
    found = enlarged(ramp, 4, 4)[0]
    assert torch.equal(found[:, 0], torch.tensor([1, 1.5, 2.5, 3]))  # between pixels' centres
    assert torch.equal(found, found[:, :1].expand(4, 4))
    assert enlarged(torch.ones(1, 6), 5, 3).shape == (1, 5, 3)  # 3 x 2, halved and rounded up
    with pytest.raises(UserError, match="5 pixels"):
        enlarged(torch.ones(1, 5), 4, 4)


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(UserError, match="tokenizer"):
        Recording(analytic(gaussian()), analytic(gaussian()).request(["1"], [0]), [BrightEnding()])


# --- pictures of one prompt


def pictures(seed, count, height=9, width=10):
    random = np.random.default_rng(seed)
    return list(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def test_tiled_l2_against_loops():
    tiles, height, width = 4, 9, 10
    shown = [pictures(0, 3), pictures(1, 3)]
    seen = observe(analytic(gaussian()), ["1", "2"], 3, pictures=shown)
    scores = TiledL2(tiles=tiles).score(seen)
    assert scores.shape == (2, 1)
    for row in range(2):
        smallest = np.inf
        for one in range(3):
            for other in range(one):
                largest = 0.0
                for i in range(tiles):
                    for j in range(tiles):
                        down = slice(i * height // tiles, (i + 1) * height // tiles)
                        right = slice(j * width // tiles, (j + 1) * width // tiles)
                        a = shown[row][one][down, right] / 255.0
                        b = shown[row][other][down, right] / 255.0
                        largest = max(largest, float(np.sqrt(np.mean((a - b) ** 2))))
                smallest = min(smallest, largest)
        assert scores[row, 0] == pytest.approx(-smallest, rel=1e-12)


def test_tiled_l2_of_two_equal_pictures_is_zero_and_of_black_and_white_minus_one():
    one, other, _ = pictures(0, 3)
    black = np.zeros_like(one)
    seen = observe(analytic(gaussian()), ["1"], 3, pictures=[[one, other, one.copy()]])
    assert TiledL2().score(seen).tolist() == [[0]]
    seen = observe(analytic(gaussian()), ["1"], 2, pictures=[[black, black + 255]])
    assert TiledL2().score(seen).tolist() == [[-1]]


def test_tiled_l2_sees_one_tile_that_differs():
    one = np.zeros((8, 8, 3), np.uint8)
    other = one.copy()
    other[:2, :2] = 51
    seen = observe(analytic(gaussian()), ["1"], 2, pictures=[[one, other]])
    assert TiledL2().score(seen)[0, 0] == pytest.approx(-51 / 255)
    assert TiledL2(tiles=1).score(seen)[0, 0] == pytest.approx(-51 / 255 / 4)


def test_tiled_l2_cannot_compare_one_picture_nor_cut_one_that_is_too_small():
    seen = observe(analytic(gaussian()), ["1"], 1, pictures=[pictures(0, 1)])
    with pytest.raises(Unmeasurable, match="only one"):
        TiledL2().score(seen)
    seen = observe(analytic(gaussian()), ["1"], 2, pictures=[pictures(0, 2)])
    with pytest.raises(Unmeasurable, match="10x9"):
        TiledL2(tiles=10).score(seen)
