"""Controls do what they are named for: less guidance, random weights, random neurons."""

from __future__ import annotations

import pytest
import torch

from bench.contracts.method import FitData, Method
from bench.diffusion.denoiser import Denoiser
from bench.running.sampling import sample
from conftest import CAPTIONS
from methods.guidance import Guidance
from methods.random_neurons import RandomNeurons
from methods.random_prune import RandomPrune
from methods.wanda import Wanda, feed_forward_outputs

PROMPTS, SEEDS = CAPTIONS[:2], [3, 4]
DATA = FitData(fit_prompts=tuple(CAPTIONS[2:5]), clean_prompts=(), training_images={})


def latents(denoiser, method):
    return sample(denoiser, denoiser.request(PROMPTS, SEEDS), method, {})


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_less_guidance_is_none_at_a_smaller_scale(tiny_pipe, share):
    denoiser = Denoiser(tiny_pipe, steps=3, guidance_scale=share * 4.0)
    expected = latents(denoiser, Method())
    denoiser.close()
    denoiser = Denoiser(tiny_pipe, steps=3, guidance_scale=4.0)
    torch.testing.assert_close(latents(denoiser, Guidance(share=share)), expected)
    assert torch.equal(latents(denoiser, Guidance(share=1)), latents(denoiser, Method()))
    denoiser.close()


def test_every_row_loses_as_many_weights_as_wanda_takes_in_other_columns(denoiser):
    chosen = Wanda(sparsity=0.2).fit(denoiser, DATA)
    first, again, other = (
        RandomPrune(sparsity=0.2, draw=draw).fit(denoiser, DATA) for draw in (0, 0, 1)
    )
    assert chosen.keys() == first.keys()
    for name, mask in chosen.items():
        assert torch.equal(first[name].sum(1), mask.sum(1))
        assert torch.equal(first[name], again[name])
    assert any(not torch.equal(first[name], chosen[name]) for name in chosen)
    assert any(not torch.equal(first[name], other[name]) for name in chosen)


def test_the_union_of_scattered_masks_is_what_is_pruned(denoiser):
    method = RandomPrune(sparsity=0.2)
    fitted = method.fit(denoiser, DATA)
    prompts = list(DATA.fit_prompts)
    functions = method.mask_functions(denoiser, prompts, lambda *progress: None)
    for name in feed_forward_outputs(denoiser.pipe.unet):
        _, masked = functions[name](range(len(prompts)))
        assert torch.equal(masked.any(0), fitted[name])


def test_scattered_columns_hold_as_many_of_any_mask():
    method, mask = RandomPrune(), torch.rand(5, 7, 40) < 0.3
    scattered = method.scattered("layer", mask)
    assert torch.equal(scattered.sum(-1), mask.sum(-1))
    # One order for all calls: what is true of both stays true of both.
    both = method.scattered("layer", mask[0] & mask[1])
    assert torch.equal(both, scattered[0] & scattered[1])


def test_every_layer_loses_as_many_neurons_and_prompts_share_as_many_as_before():
    method, sizes = RandomNeurons(), [30, 50]
    one = frozenset({(0, 1), (0, 7), (1, 3), (1, 40)})
    two = frozenset({(0, 7), (1, 40), (1, 41)})
    scattered = [method.scattered(neurons, sizes) for neurons in (one, two)]
    for before, after in zip((one, two), scattered, strict=True):
        assert sorted(layer for layer, _ in before) == sorted(layer for layer, _ in after)
        assert all(0 <= channel < sizes[layer] for layer, channel in after)
    assert len(scattered[0] & scattered[1]) == len(one & two)
    assert scattered[0] == method.scattered(one, sizes) != one
    assert RandomNeurons(draw=1).scattered(one, sizes) != scattered[0]
