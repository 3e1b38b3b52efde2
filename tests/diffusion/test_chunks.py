"""Prompts in chunks: against a plain loop, and who works on them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from acting import ACTING
from safetensors.torch import save_file

from bench.base.errors import UserError
from bench.base.parameters import configure
from bench.checks import method_contracts
from bench.checks.contract import NotApplicable, Subject
from bench.checks.method_contracts import METHOD_CONTRACTS
from bench.contracts.held import Held
from bench.contracts.method import Method
from bench.diffusion.clip_skip import skip_layers
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.model import load_denoiser
from bench.diffusion.prompt_tokenizer import as_prompt_tokenizer
from bench.diffusion.text import read_in_chunks, token_ids
from bench.diffusion.textual_inversion import insert, read_embedding
from bench.registry import registry
from bench.running.prepare import prepare
from bench.running.sampling import sample
from bench.studies.detection import _detector_for
from bench.suite.load import load_suite
from bench.testbed.tiny import build_tiny_xl_pipeline
from conftest import CAPTIONS, build_tiny_pipeline
from methods._insertion import with_prompts

CPU = torch.device("cpu")
CONTRACTS = ("a batch equals its images one by one", "neutral parameters equal `none`, bit for bit")
METHODS = registry.entries("method")
SHORT = "a fox"
LONG = " ".join(["a red fox and a key on a blue table"] * 5)
PROMPTS, SEEDS = [SHORT, LONG, ""], [3, 4, 5]


def in_chunks(pipe, chunks):
    read_in_chunks(pipe, chunks)
    return Denoiser(pipe, 4, 4.0)


def one_by_one(tokenizer, encoder, prompt, chunks, xl=False, skipped=0):
    """States of each chunk behind each other `[T, D]`, and the pooled text of the first `[P]`: one
    chunk after the other, with the tokens put together by hand.
    """
    words = tokenizer(prompt, truncation=False).input_ids[1:-1]
    room, rows, pooled = tokenizer.model_max_length - 2, [], []
    for chunk in range(chunks):
        ids = [tokenizer.bos_token_id]
        for place in range(chunk * room, min((chunk + 1) * room, len(words))):
            ids.append(words[place])
        ids.append(tokenizer.eos_token_id)
        while len(ids) < tokenizer.model_max_length:
            ids.append(tokenizer.convert_tokens_to_ids(tokenizer.pad_token))
        with torch.no_grad():
            found = encoder(torch.tensor([ids]), output_hidden_states=True)
        states = found.hidden_states[-2 - skipped] if xl else found.last_hidden_state
        rows += list(states[0])
        pooled.append(found[0][0])
    return torch.stack(rows), pooled[0]


@pytest.mark.parametrize("chunks", [2, 3])
def test_each_chunk_is_encoded_by_itself_between_a_beginning_and_an_end(chunks):
    pipe = build_tiny_pipeline()
    plain = copy.deepcopy(pipe)
    denoiser = in_chunks(pipe, chunks)
    found = denoiser.encode(PROMPTS)
    wanted = [one_by_one(plain.tokenizer, plain.text_encoder, one, chunks)[0] for one in PROMPTS]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-5)
    width = pipe.tokenizer.model_max_length
    assert found.shape[1] == chunks * width
    # the first chunk of a prompt is what is read of it otherwise
    torch.testing.assert_close(found[:, :width], Denoiser(plain, 4, 4.0).encode(PROMPTS))
    assert torch.equal(denoiser.null_embeddings(1)[0], found[2])


@pytest.mark.parametrize("zero_null", [True, False])
@pytest.mark.parametrize("skipped", [0, 1])
def test_of_xl_both_encoders_read_chunks_and_the_first_one_is_pooled(zero_null, skipped):
    pipe = build_tiny_xl_pipeline(zero_null=zero_null, second_width=48)
    plain = copy.deepcopy(pipe)
    skip_layers(pipe, skipped)
    denoiser = in_chunks(pipe, 2)
    request = denoiser.request(PROMPTS, SEEDS)
    assert plain.tokenizer_2.pad_token == "!" != plain.tokenizer.pad_token
    for row, prompt in enumerate(PROMPTS):
        (first, _), (second, pooled) = (
            one_by_one(tokenizer, encoder, prompt, 2, xl=True, skipped=skipped)
            for tokenizer, encoder in (
                (plain.tokenizer, plain.text_encoder),
                (plain.tokenizer_2, plain.text_encoder_2),
            )
        )
        wanted = torch.cat([first, second], 1)
        torch.testing.assert_close(request.embeddings[row], wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(request.pooled[row], pooled, rtol=0, atol=1e-5)
    null = 0 * request.embeddings if zero_null else request.embeddings[2].expand(3, -1, -1)
    torch.testing.assert_close(request.null_embeddings, null)


@pytest.mark.parametrize("build", [build_tiny_pipeline, build_tiny_xl_pipeline])
def test_one_chunk_is_what_the_pipeline_reads(build):
    pipe = build()
    plain = Denoiser(copy.deepcopy(pipe), 4, 4.0)
    for name in ("tokenizer", "tokenizer_2"):
        if getattr(pipe, name, None) is not None:
            as_prompt_tokenizer(getattr(pipe, name))
    found, wanted = Denoiser(pipe, 4, 4.0).texts(PROMPTS), plain.texts(PROMPTS)
    assert torch.equal(found[0], wanted[0])
    assert found[1] is None or torch.equal(found[1].pooled, wanted[1].pooled)


def test_words_behind_the_first_chunk_change_the_picture():
    pipe = build_tiny_pipeline()
    for name, weight in pipe.unet.named_parameters():
        if "attn2.to_v" in name:  # random weights hardly hear a text
            weight.data.mul_(12)
    plain = Denoiser(copy.deepcopy(pipe), 4, 4.0)
    begun = " ".join(LONG.split()[:27])
    prompts = [begun, f"{begun} snow"]

    def pictures(denoiser):
        found = sample(denoiser, denoiser.request(prompts, [1, 1]), Method(), {})
        return denoiser.decode(found).astype(int)

    one, two = pictures(plain), pictures(in_chunks(pipe, 3))
    assert np.array_equal(one[0], one[1])
    assert np.abs(two[0] - two[1]).max() > 1


def test_what_is_longer_than_all_chunks_is_cut_and_counted():
    pipe = build_tiny_pipeline()
    room = pipe.tokenizer.model_max_length - 2
    denoiser = in_chunks(pipe, 2)
    assert denoiser.most_tokens == 2 * room + 2
    full, more = " ".join(["a"] * (2 * room)), " ".join(["a"] * (2 * room + 1))
    prompts = ["a", full, more]
    assert denoiser.lengths(prompts).tolist() == [3, 2 * room + 2, 2 * room + 2]
    assert torch.equal(denoiser.encode([full]), denoiser.encode([more]))
    request = denoiser.request(prompts, [1, 2, 3])
    with_prompts(denoiser, request, prompts)
    assert request.facts["truncated"] == [False, False, True]


def test_a_word_of_several_tokens_is_cut_where_a_chunk_ends(tmp_path):
    pipe = build_tiny_pipeline()
    save_file({"emb_params": torch.ones(3, 32)}, tmp_path / "style.safetensors")
    insert(pipe, [read_embedding(tmp_path / "style.safetensors")])
    read_in_chunks(pipe, 2)
    room = pipe.tokenizer.model_max_length - 2
    ids = token_ids(pipe.tokenizer, [" ".join(["a"] * (room - 1)) + " style"])
    first, last = pipe.tokenizer.bos_token_id, pipe.tokenizer.eos_token_id
    word = pipe.tokenizer.convert_tokens_to_ids(["style", "style_1", "style_2"])
    assert ids[0, 0, room].item() == word[0]
    assert ids[0, 1, :4].tolist() == [first, *word[1:], last]


def test_embeddings_of_one_chunk_are_refused_where_several_are_read():
    """As an attack makes them that asks the text encoder itself."""
    denoiser = in_chunks(build_tiny_pipeline(), 2)
    held = Held("base", denoiser, 32, lambda *_: pytest.fail("nothing is sampled"))
    request = denoiser.request(["a fox"], [1])
    with pytest.raises(UserError, match="24x32 numbers, and .* 48x32") as error:
        held.handing_in(request, request.embeddings[:, :24])
    assert "\n" not in str(error.value)
    whole = held.handing_in(request, denoiser.encode(["a key"]))
    assert torch.equal(denoiser.encode(whole.prompts), denoiser.encode(["a key"]))


# --- who works on them


@pytest.mark.parametrize("name", sorted(n for n in METHODS if METHODS[n].load().in_chunks))
def test_a_method_that_says_so_works_on_chunks(name, tiny_folder, monkeypatch):
    pipe = build_tiny_pipeline()
    read_in_chunks(pipe, 2)
    base = copy.deepcopy(method_contracts._base_pipeline())
    read_in_chunks(base, 2)
    monkeypatch.setattr(method_contracts, "_pipeline", lambda *_: pipe)
    monkeypatch.setattr(method_contracts, "_base_pipeline", lambda: base)
    entry = METHODS[name]
    cls = entry.load()
    values = ACTING.get(name, dict(cls.trial))
    subject = Subject(entry, cls, configure("method", name, cls, values), values, tiny_folder)
    for contract in CONTRACTS:
        try:
            METHOD_CONTRACTS[contract](subject)
        except NotApplicable:
            assert contract != CONTRACTS[0]


def test_what_takes_places_for_tokens_is_refused_before_anything_is_made(tmp_path, tiny_folder):
    file = tmp_path / "mine.toml"
    head = f'extends = "{tiny_folder / "tiny.toml"}"\nname = "mine"\n'
    file.write_text(f"{head}[model]\nchunks = 2\n")
    suite = load_suite(str(file))
    refused = {name for name in METHODS if not METHODS[name].load().in_chunks}
    assert refused == {"adv_finetune", "clip_pad", "cross_attention", "guard", "uce"}
    for name in refused:
        with pytest.raises(UserError, match=f"method {name} takes the places") as error:
            prepare(suite, name, {}, str(tmp_path / "store"), CPU)
        assert "\n" not in str(error.value)
    for name in ("bright_ending", "attention_entropy"):
        with pytest.raises(UserError, match=f"detector {name} takes the places"):
            _detector_for(suite, name, {})


def test_a_suite_says_it_and_is_who_it_was_without(tmp_path, tiny_folder, tiny_suite):
    def suite(chunks):
        file = tmp_path / "mine.toml"
        head = f'extends = "{tiny_folder / "tiny.toml"}"\nname = "mine"\n'
        file.write_text(f"{head}[model]\nchunks = {chunks}\n")
        return load_suite(str(file))

    one, two = suite(1), suite(2)
    assert one.generation == tiny_suite.generation
    assert two.generation == one.generation | {"chunks": 2}
    assert one.fingerprint != two.fingerprint
    assert load_denoiser(two, CPU).encode(CAPTIONS[:1]).shape[1] == 48
