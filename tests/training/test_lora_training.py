"""A LoRA in training and the files that it becomes: exact, resumable, and nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from bench.base.safetensors_header import with_metadata
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.training.denoising import Denoising
from bench.training.loop import Course, Learner
from bench.training.lora import Lora
from bench.training.lora_files import (
    Folder,
    Told,
    kohya_header,
    kohya_tensors,
    peft_header,
    peft_tensors,
    write_lora,
)
from conftest import CAPTIONS, build_tiny_pipeline

CPU = torch.device("cpu")
COURSE = Course(steps=5, learning_rate=0.01, warmup=2, checkpoint_every=2)


@torch.enable_grad()
def taught(folder=None, course=COURSE, watch=lambda step, loss: None, alpha=6):
    """A tiny pipeline and a LoRA that learned a few pictures beside its UNet."""
    pipe = build_tiny_pipeline()
    random = np.random.default_rng(0)
    latents = random.normal(size=(4, 1, 2, 4, 8, 8)).astype(np.float32)
    latents[:, :, 1] = np.abs(latents[:, :, 1])
    loss = Denoising(pipe, latents, CAPTIONS[:4], np.array([0, 0, 0, 1, 2, 3]), 3, 1, CPU)
    lora = Lora(pipe.unet, 4, alpha, seed=1)
    with lora.attached():
        learner = Learner(lora, course, loss, CPU, folder)
        learner.learn(watch)
    return pipe, learner.result


def given(pipe, seed=3):
    random = torch.Generator().manual_seed(seed)
    width = pipe.unet.config.cross_attention_dim
    return (
        torch.randn(2, 4, 8, 8, generator=random),
        torch.tensor([10, 900]),
        torch.randn(2, 5, width, generator=random),
    )


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def told():
    folders = (
        Folder("3_a fox", 3, ("A fox, red,night", "red")),
        Folder("1_owl", 1, ("an owl", "night , red, ", "red")),
    )
    return Told(folders, 32, 3, 8, "tiny")


@torch.no_grad()
def test_it_is_the_network_with_the_sum_of_products_added_to_its_weights():
    pipe, lora = taught()
    plain, by_hand = build_tiny_pipeline().unet, build_tiny_pipeline().unet
    for path, (down, up) in lora.factors().items():
        weight = by_hand.get_submodule(path).weight
        for out in range(weight.shape[0]):
            for rank in range(4):
                weight[out] += 6 / 4 * up[out, rank] * down[rank]
    one, two, three = given(pipe)
    with lora.attached():
        found = lora(one, two, encoder_hidden_states=three).sample
    wanted = by_hand(one, two, encoder_hidden_states=three).sample
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    before = plain(one, two, encoder_hidden_states=three).sample
    assert (found - before).abs().max() > 0.01
    # Outside the block the network is what it was.
    assert torch.equal(lora(one, two, encoder_hidden_states=three).sample, before)


@torch.no_grad()
def test_an_untrained_one_changes_nothing_and_begins_alike_for_a_seed():
    pipe = build_tiny_pipeline()
    one, two, three = given(pipe)
    before = pipe.unet(one, two, encoder_hidden_states=three).sample
    torch.manual_seed(4)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    lora = Lora(pipe.unet, 4, 4, seed=1)
    assert torch.equal(torch.rand(1), drawn)
    with lora.attached():
        assert torch.equal(lora(one, two, encoder_hidden_states=three).sample, before)
    assert same(weights(lora), weights(Lora(pipe.unet, 4, 1, seed=1)))
    assert not same(weights(lora), weights(Lora(pipe.unet, 4, 4, seed=2)))


def test_its_layers_are_the_linear_ones_of_attention_and_feed_forward():
    unet = build_tiny_pipeline().unet
    attention = {
        f"{path}.{name}"
        for path, module in unet.named_modules()
        if type(module).__name__ == "Attention"
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    forward = {
        f"{path}.{name}"
        for path, module in unet.named_modules()
        if type(module).__name__ == "FeedForward"
        for name in ("net.0.proj", "net.2")
    }
    assert set(Lora(unet, 2, 2, 0).paths) == attention | forward
    assert len(Lora(unet, 2, 2, 0, (".to_v",)).paths) == len(attention) / 4
    with pytest.raises(ValueError, match="no linear layer's path ends with one of conv1"):
        Lora(unet, 2, 2, 0, ("conv1",))


def test_training_leaves_the_network_as_it_was():
    pipe, lora = taught()
    fresh = build_tiny_pipeline().unet
    assert same(weights(pipe.unet), weights(fresh))
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    assert {name: value.requires_grad for name, value in pipe.unet.named_parameters()} == {
        name: value.requires_grad for name, value in fresh.named_parameters()
    }
    assert not any(value.grad is not None for value in pipe.unet.parameters())
    assert all(bool(up.any()) for _, up in lora.factors().values())


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_and_repeated_is_undisturbed_bit_for_bit(tmp_path, ema, stop):
    course = Course(steps=5, learning_rate=0.01, ema=ema, checkpoint_every=2)

    def killed(step, _):
        if step == stop:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        taught(tmp_path, course, killed)
    _, resumed = taught(tmp_path, course)
    assert same(weights(resumed), weights(taught(course=course)[1]))
    # Checkpoints hold the LoRA's layers alone.
    (checkpoint,) = tmp_path.glob("step-*")
    kept = load_file(checkpoint / "unet.safetensors")
    assert kept.keys() == weights(resumed).keys()


def test_files_in_both_spellings_merge_to_exactly_the_trained_update(tmp_path):
    _, lora = taught()
    write_lora(tmp_path / "kohya.safetensors", kohya_tensors(lora), {})
    write_lora(tmp_path / "peft.safetensors", peft_tensors(lora), peft_header(lora))
    merged = []
    for name in ("kohya", "peft"):
        pipe = build_tiny_pipeline()
        file = read_lora(tmp_path / f"{name}.safetensors")
        assert {tensor.dtype for tensor in file.tensors.values()} == {torch.float16}
        merge(pipe, [(file, Strength())])
        merged.append(weights(pipe.unet))
    assert same(*merged)
    wanted = weights(build_tiny_pipeline().unet)
    for path, (down, up) in lora.factors().items():
        wanted[f"{path}.weight"] += 1.5 * (up.half().float() @ down.half().float())
    assert same(merged[0], wanted)


@pytest.mark.parametrize("spelling", ["kohya", "peft"])
@torch.no_grad()
def test_diffusers_reads_the_same_change_out_of_the_files(tmp_path, spelling):
    pytest.importorskip("peft")
    pipe, lora = taught()
    tensors, header = {
        "kohya": (kohya_tensors(lora), kohya_header(lora, COURSE, told(), 1, 5)),
        "peft": (peft_tensors(lora), peft_header(lora)),
    }[spelling]
    write_lora(tmp_path / "one.safetensors", tensors, header)
    merge(pipe, [(read_lora(tmp_path / "one.safetensors"), Strength())])
    other = build_tiny_pipeline()
    other.load_lora_weights(tmp_path, weight_name="one.safetensors")
    one, two, three = given(pipe)
    found, wanted = (
        unet(one, two, encoder_hidden_states=three).sample for unet in (pipe.unet, other.unet)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_kohyas_header_tells_the_training_as_it_was(tmp_path):
    _, lora = taught()
    header = kohya_header(lora, COURSE, told(), epoch=2, steps=6)
    write_lora(tmp_path / "one.safetensors", kohya_tensors(lora), header)
    found = read_lora(tmp_path / "one.safetensors").header
    plain = {
        "ss_network_dim": "4",
        "ss_network_alpha": "6",
        "ss_num_train_images": "9",
        "ss_num_epochs": "8",
        "ss_epoch": "2",
        "ss_steps": "6",
        "ss_resolution": "(32, 32)",
        "ss_base_model_version": "tiny",
        "ss_clip_skip": "None",
        "ss_total_batch_size": "3",
        "ss_flip_aug": "False",
    }
    assert {name: found[name] for name in plain} == plain
    assert json.loads(found["ss_dataset_dirs"]) == {
        "3_a fox": {"n_repeats": 3, "img_count": 2},
        "1_owl": {"n_repeats": 1, "img_count": 3},
    }
    assert json.loads(found["ss_tag_frequency"]) == {
        "3_a fox": {"a fox": 1, "red": 2, "night": 1},
        "1_owl": {"an owl": 1, "night": 1, "red": 2},
    }


def test_a_header_is_sorted_read_by_the_library_and_leaves_the_tensors_alone(tmp_path):
    tensors = {"b": torch.arange(3, dtype=torch.float16), "a": torch.ones(2, 2)}
    said = {"z": "last", "a": 'text with " and ü', "m": ""}
    content = with_metadata(save(tensors, {"older": "text"}), said)
    (tmp_path / "one.safetensors").write_bytes(content)
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert file.metadata() == said
        assert same({name: file.get_tensor(name) for name in ("a", "b")}, tensors)
    assert content == with_metadata(save(tensors), dict(reversed(said.items())))
    assert content.index(b'"a":"text') < content.index(b'"m":""') < content.index(b'"z":"last"')
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0
