"""Texts read at an earlier layer: against diffusers, and that everybody reads the same one."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.base.errors import UserError
from bench.contracts.method import Method
from bench.diffusion.clip_skip import skip_layers
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import check
from bench.diffusion.model import load_pipeline
from bench.diffusion.textual_inversion import insert, read_embedding
from bench.running.sampling import sample
from bench.suite.load import load_suite
from bench.testbed.tiny import build_tiny_xl_pipeline
from conftest import CAPTIONS, build_tiny_pipeline
from methods.clip_pad import _filled_up

CPU = torch.device("cpu")
WORD = {False: ("emb_params",), True: ("clip_l", "clip_g")}  # by whether it is for XL
PROMPTS, SEEDS = CAPTIONS[:2], [3, 4]


def deep_pipeline():
    """The tiny pipeline with four layers in its text encoder."""
    from transformers import CLIPTextModel

    pipe = build_tiny_pipeline()
    config = copy.deepcopy(pipe.text_encoder.config)
    config.num_hidden_layers = 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.text_encoder = CLIPTextModel(config).eval().requires_grad_(False)
    return pipe


def for_diffusers(pipe):
    """A copy whose text encoder has what diffusers asks for where layers are skipped; this release
    of transformers calls it otherwise.
    """
    theirs = copy.deepcopy(pipe)
    if not hasattr(theirs.text_encoder, "text_model"):
        norm = SimpleNamespace(final_layer_norm=theirs.text_encoder.final_layer_norm)
        object.__setattr__(theirs.text_encoder, "text_model", norm)
    return theirs


def pictures(denoiser):
    request = denoiser.request(PROMPTS, SEEDS)
    return request, denoiser.decode(sample(denoiser, request, Method(), {})).astype(int)


def by_diffusers(pipe, request, count, **more):
    found = pipe(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=request.latents.clone(),
        output_type="np",
        clip_skip=count,
        **more,
    ).images
    return (found * 255).round().astype(int)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_embeddings_and_pictures_are_those_of_diffusers(count):
    """Of the empty prompt too, which diffusers reads at the last layer unless it is a prompt:
    kohya's scripts and A1111 read both at one layer, and so does the harness.
    """
    pipe = deep_pipeline()
    theirs, plain = for_diffusers(pipe), copy.deepcopy(pipe)
    skip_layers(pipe, count)
    request, found = pictures(Denoiser(pipe, 4, 4.0))
    wanted, other = theirs.encode_prompt(PROMPTS, CPU, 1, True, clip_skip=count)
    null, _ = theirs.encode_prompt(["", ""], CPU, 1, False, clip_skip=count)
    torch.testing.assert_close(request.embeddings, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(request.null_embeddings, null, rtol=0, atol=1e-6)
    assert torch.equal(other, Denoiser(plain, 4, 4.0).null_embeddings(2))
    again = by_diffusers(theirs, request, count, negative_prompt_embeds=null)
    assert np.abs(found - again).max() <= 1
    # The bound is not vacuous.
    assert not torch.allclose(request.embeddings, Denoiser(plain, 4, 4.0).encode(PROMPTS))


def test_of_xl_both_encoders_skip_and_the_pooled_text_stays():
    pipe = build_tiny_xl_pipeline()
    theirs = copy.deepcopy(pipe)
    skip_layers(pipe, 1)
    request, found = pictures(Denoiser(pipe, 4, 4.0))
    wanted, _, pooled, _ = theirs.encode_prompt(
        PROMPTS, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=1
    )
    assert torch.equal(request.embeddings, wanted) and torch.equal(request.pooled, pooled)
    assert np.abs(found - by_diffusers(theirs, request, 1)).max() <= 1
    assert not torch.allclose(wanted, Denoiser(theirs, 4, 4.0).encode(PROMPTS))


@pytest.mark.parametrize("xl", [False, True])
def test_whoever_asks_an_encoder_and_a_word_of_its_own_get_that_layer(tmp_path, xl):
    pipe = build_tiny_xl_pipeline() if xl else deep_pipeline()
    save_file({name: torch.ones(2, 32) for name in WORD[xl]}, tmp_path / "style.safetensors")
    insert(pipe, [read_embedding(tmp_path / "style.safetensors")])
    skip_layers(pipe, 1)
    denoiser = Denoiser(pipe, 4, 4.0)
    ordinary = denoiser.encode(["a style"])[..., :32]
    torch.testing.assert_close(_filled_up(denoiser, ["a style"], 0.0), ordinary)


def test_no_layer_disappears_so_a_lora_of_a_skipped_one_still_belongs(tmp_path):
    pipe = deep_pipeline()
    skip_layers(pipe, 1)
    name = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"
    tensors = {f"{name}.lora_up.weight": torch.ones(32, 2)}
    tensors[f"{name}.lora_down.weight"] = torch.ones(2, 32)
    save_file(tensors, tmp_path / "one.safetensors")
    check(pipe, read_lora(tmp_path / "one.safetensors"))


def test_a_suite_says_it_and_is_who_it_was_without(tmp_path, tiny_folder, tiny_suite):
    def suite(count):
        file = tmp_path / "mine.toml"
        head = f'extends = "{tiny_folder / "tiny.toml"}"\nname = "mine"\n'
        file.write_text(f"{head}[model]\nclip_skip = {count}\n")
        return load_suite(str(file))

    none, one = suite(0), suite(1)
    assert none.generation == tiny_suite.generation
    assert one.generation == none.generation | {"clip_skip": 1}
    assert one.fingerprint != none.fingerprint
    # the tiny pipeline has one layer, which must be read
    with pytest.raises(UserError, match="leaves 0 to skip"):
        load_pipeline(one, CPU)


def test_more_layers_than_there_are_is_one_line():
    for pipe, count, left in ((deep_pipeline(), 4, 3), (build_tiny_xl_pipeline(), 2, 1)):
        with pytest.raises(UserError, match=f"leaves {left} to skip") as error:
            skip_layers(pipe, count)
        assert "\n" not in str(error.value)
