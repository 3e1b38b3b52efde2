"""Methods that find what a model memorizes in its weights, on weights with a LoRA file merged in:
what they look at, and what they take away, is W + dW.
"""

from contextlib import contextmanager

import pytest
import torch
from recalling import recalling_pipeline
from safetensors.torch import save_file

from bench.contracts.method import FitData, Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.running.sampling import sample
from conftest import CAPTIONS
from methods._nemo_layers import mean_activations, value_layers
from methods.nemo import Nemo
from methods.wanda import Wanda, feed_forward_outputs

CLEAN = tuple(f"{caption} {word}" for caption in CAPTIONS for word in ("red", "of", "and"))
PROMPT = CAPTIONS[1]
STRENGTH = 0.5


def layers_of(unet):
    return {**value_layers(unet), **feed_forward_outputs(unet)}


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """A LoRA file of the layers that the two methods change, and its dW by layer, in float64."""
    random, tensors, found = torch.Generator().manual_seed(3), {}, {}
    for name, layer in layers_of(recalling_pipeline().unet).items():
        key = "lora_unet_" + name.replace(".", "_")
        down = torch.randn(2, layer.in_features, generator=random)
        up = torch.randn(layer.out_features, 2, generator=random)
        up = up * float(layer.weight.std())
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        found[name] = STRENGTH * up.double() @ down.double()
    file = tmp_path_factory.mktemp("lora") / "1.safetensors"
    save_file(tensors, file)
    return file, found


@contextmanager
def denoiser_of(pipe):
    denoiser = Denoiser(pipe, steps=3, guidance_scale=4.0, batch_size=4)
    yield denoiser
    denoiser.close()


@pytest.fixture
def merged(changes):
    pipe = recalling_pipeline()
    merge(pipe, [(read_lora(changes[0]), Strength(STRENGTH, STRENGTH))])
    with denoiser_of(pipe) as denoiser:
        yield denoiser


def test_the_weights_are_those_of_the_base_with_the_change_added(merged, changes):
    base, unet = layers_of(recalling_pipeline().unet), merged.pipe.unet
    for name, layer in layers_of(unet).items():
        expected = base[name].weight.double() + changes[1][name]
        assert torch.allclose(layer.weight.double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(layer.weight, base[name].weight)


def test_nemo_reads_activations_of_the_merged_weights(merged):
    """Means over clean texts, by the formula, of W + dW; those of the base are others."""
    method = Nemo(threshold=0.3)
    state = method.fit(merged, FitData(clean_prompts=CLEAN))
    texts = merged.encode(CLEAN)
    base = value_layers(recalling_pipeline().unet)
    for name, layer in value_layers(merged.pipe.unet).items():
        by_hand = (texts @ layer.weight.T).abs().mean(1).mean(0)
        assert torch.allclose(state[f"mean.{name}"], by_hand, rtol=1e-4, atol=1e-4)
        (of_base,) = mean_activations({name: base[name]}, texts)
        assert not torch.allclose(state[f"mean.{name}"], of_base.mean(0), rtol=1e-2)


@pytest.fixture
def permanent(merged):
    """Neurons found on the merged model for one prompt."""
    method = Nemo(mode="permanent", threshold=0.4)
    return method, method.fit(merged, FitData(clean_prompts=CLEAN, fit_prompts=(PROMPT,)))


def test_nemo_takes_whole_rows_of_the_merged_weights_away(merged, permanent):
    """Nothing of dW is left in them, every other row is what it was, and all return."""
    method, state = permanent
    layers = value_layers(merged.pipe.unet)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    chosen = {name: state[f"neurons.{name}"] for name in layers}
    assert any(bool(rows.any()) for rows in chosen.values())
    with method.attach(merged.pipe, state):
        for name, layer in layers.items():
            assert torch.equal(layer.weight, before[name].masked_fill(chosen[name][:, None], 0))
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())


def drawn(denoiser, method, state):
    with method.attach(denoiser.pipe, state):
        return sample(denoiser, denoiser.request([PROMPT], [5]), method, state)


def test_nemo_searches_and_masks_each_prompt_on_the_merged_weights(merged, permanent):
    """The images of the prompt's own neurons are those of the same neurons taken out for good."""
    by_prompt, state = Nemo(), permanent[1]
    found = drawn(merged, by_prompt, state)
    assert torch.equal(found, drawn(merged, *permanent))
    assert not torch.equal(found, drawn(merged, Method(), {}))


def test_the_mask_of_wanda_takes_w_and_its_change_away(merged, changes):
    """A masked weight is 0, not -dW nor dW; masks follow the merged weights and not the base's."""
    data, method = FitData(fit_prompts=tuple(CAPTIONS[:2])), Wanda(sparsity=0.2, calls=2)
    state = method.fit(merged, data)
    layers = feed_forward_outputs(merged.pipe.unet)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    with method.attach(merged.pipe, state):
        for name, layer in layers.items():
            masked = state[name]
            assert bool(masked.any()) and bool((changes[1][name][masked] != 0).all())
            assert torch.equal(layer.weight, before[name].masked_fill(masked, 0))
    with denoiser_of(recalling_pipeline()) as base:
        other = method.fit(base, data)
    assert any(not torch.equal(state[name], other[name]) for name in layers)
