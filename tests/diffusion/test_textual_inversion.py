"""Textual inversions: against diffusers' own loader, that everybody reads the same tokens, and what
is refused.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.base.errors import UserError
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.model import load_denoiser, load_pipeline
from bench.diffusion.textual_inversion import insert, read_embedding
from bench.doctor.suites import look
from bench.running.sampling import sample
from bench.suite.load import load_suite
from bench.testbed.tiny import build_tiny_xl_pipeline
from conftest import CAPTIONS, build_tiny_pipeline
from methods._insertion import with_prompts
from methods.clip_pad import _filled_up
from methods.cross_attention import CrossAttention
from methods.random_tokens import RandomTokens

CPU = torch.device("cpu")
PROMPTS = ["a photo of style", f"{CAPTIONS[0]} in style, style", CAPTIONS[1]]
SEEDS = [3, 4, 5]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def written(folder, tensors, name="style.safetensors", header=None):
    save_file(tensors, folder / name, header)
    return folder / name


def refused(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def pictures(denoiser, prompts=PROMPTS):
    request = denoiser.request(prompts, SEEDS)
    return request, denoiser.decode(sample(denoiser, request, Method(), {})).astype(int)


def by_diffusers(pipe, request, **more):
    found = pipe(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=request.latents.clone(),
        output_type="np",
        **more,
    ).images
    return (found * 255).round().astype(int)


def twins(pipe, count=2):
    """Copies of a pipeline: tokenizers that are trained anew may differ where words are as frequent
    as each other.
    """
    return [copy.deepcopy(pipe) for _ in range(count)]


def with_embedding(folder, count=3, pipe=None, **more):
    """A tiny pipeline that knows the word `style`."""
    pipe = pipe or build_tiny_pipeline()
    insert(pipe, [read_embedding(written(folder, {"emb_params": drawn(count, 32)}), **more)])
    return pipe


# --- against diffusers


@pytest.mark.parametrize("key", ["emb_params", "style"])
@pytest.mark.parametrize("shape", [(32,), (1, 32), (3, 32)])
def test_embeddings_and_pictures_are_those_of_diffusers(tmp_path, key, shape):
    vectors = drawn(*shape)
    name = "style.safetensors" if key == "emb_params" else "any name.safetensors"
    ours, theirs, plain = twins(build_tiny_pipeline(), 3)
    insert(ours, [read_embedding(written(tmp_path, {key: vectors}, name))])
    theirs.load_textual_inversion({"style": vectors.clone()})
    denoiser = Denoiser(ours, 4, 4.0)
    request, found = pictures(denoiser)
    wanted, _ = theirs.encode_prompt(PROMPTS, CPU, 1, False)
    assert torch.equal(request.embeddings, wanted)
    assert np.abs(found - by_diffusers(theirs, request)).max() <= 1
    # The bound is not vacuous: without the word these are other embeddings.
    without = Denoiser(plain, 4, 4.0).encode(PROMPTS)
    assert not torch.equal(without[:2], wanted[:2]) and torch.equal(without[2], wanted[2])


@pytest.mark.parametrize("count", [1, 2])
def test_both_encoders_of_xl_read_the_word_as_diffusers_has_them_do(tmp_path, count):
    first, second = drawn(count, 32), drawn(count, 48, seed=1)
    ours, theirs = twins(build_tiny_xl_pipeline(second_width=48))
    file = written(tmp_path, {"clip_l": first, "clip_g": second})
    insert(ours, [read_embedding(file)])
    for vectors, tokenizer, encoder in (
        (first, theirs.tokenizer, theirs.text_encoder),
        (second, theirs.tokenizer_2, theirs.text_encoder_2),
    ):
        theirs.load_textual_inversion(
            {"style": vectors.clone()}, tokenizer=tokenizer, text_encoder=encoder
        )
    denoiser = Denoiser(ours, 4, 4.0)
    request, found = pictures(denoiser)
    wanted, _, pooled, _ = theirs.encode_prompt(
        PROMPTS, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(request.embeddings, wanted) and torch.equal(request.pooled, pooled)
    assert np.abs(found - by_diffusers(theirs, request)).max() <= 1


def test_the_pooled_text_is_that_of_the_end_although_new_tokens_have_larger_numbers(tmp_path):
    """The published files of XL state an end token, 2, with which transformers takes the place of
    the largest number; before there are new tokens that is the end.
    """
    pipe = build_tiny_xl_pipeline()
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = 2
    plain = Denoiser(pipe, 4, 4.0).texts(CAPTIONS[:1])[1].pooled
    vectors = {"clip_l": drawn(2, 32), "clip_g": drawn(2, 32, seed=1)}
    insert(pipe, [read_embedding(written(tmp_path, vectors))])
    denoiser = Denoiser(pipe, 4, 4.0)
    assert torch.equal(denoiser.texts(CAPTIONS[:1])[1].pooled, plain)
    ids = pipe.tokenizer_2(["style a fox"]).input_ids[0]
    padded = torch.tensor([ids + [0] * (pipe.tokenizer_2.model_max_length - len(ids))])
    states = pipe.text_encoder_2(padded).last_hidden_state[0, len(ids) - 1]
    wanted = pipe.text_encoder_2.text_projection(states)
    torch.testing.assert_close(denoiser.texts(["style a fox"])[1].pooled[0], wanted)


# --- everybody reads the same tokens


def test_a_word_is_all_of_its_tokens_however_the_tokenizer_is_asked(tmp_path):
    tokenizer = with_embedding(tmp_path).tokenizer
    word = tokenizer.convert_tokens_to_ids(["style", "style_1", "style_2"])
    a, *fox = tokenizer("a fox").input_ids[1:-1]
    for text in ("a style fox", "a STYLE fox", "a style style_1 style_2 fox"):
        assert tokenizer(text).input_ids[1:-1] == [a, *word, *fox]
        assert tokenizer([text]).input_ids[0][1:-1] == [a, *word, *fox]
        assert tokenizer.encode(text)[1:-1] == [a, *word, *fox]
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == [a, *word, *fox]
    assert not set(word) & set(tokenizer("stylely restyle").input_ids)
    assert copy.deepcopy(tokenizer)("a style fox").input_ids[1:-1] == [a, *word, *fox]


def test_a_word_in_upper_and_lower_case_is_all_of_its_tokens_too(tmp_path):
    """Where diffusers takes the first one alone: it looks for it among tokens in lower case."""
    pipe = with_embedding(tmp_path, token="MyStyle")
    word = pipe.tokenizer.convert_tokens_to_ids(["MyStyle", "MyStyle_1", "MyStyle_2"])
    for text in ("MyStyle", "mystyle"):
        assert pipe.tokenizer(text).input_ids[1:-1] == word
    theirs = build_tiny_pipeline()
    theirs.load_textual_inversion({"MyStyle": drawn(3, 32)})
    assert theirs.maybe_convert_prompt("MyStyle", theirs.tokenizer) == "MyStyle"


def test_a_word_of_other_signs_may_touch_its_neighbours(tmp_path):
    pipe = with_embedding(tmp_path, count=2, token="<s0>")
    word = pipe.tokenizer.convert_tokens_to_ids(["<s0>", "<s0>_1"])
    fox = pipe.tokenizer("fox").input_ids[1:-1]
    assert pipe.tokenizer("<s0>fox").input_ids[1:-1] == [*word, *fox]
    assert pipe.tokenizer("fox, <S0>").input_ids[-3:-1] == word


def test_a_letter_that_is_another_one_in_lower_case_is_read_as_it_stands(tmp_path):
    """Python's `re` takes the long s for an s, and the tokenizer does not."""
    plain, changed = twins(build_tiny_pipeline())
    with_embedding(tmp_path, count=2, pipe=changed)
    for text in ("a \u017ftyle", "a \u017ftyle \u017ftyle_1 fox"):
        assert changed.tokenizer(text).input_ids == plain.tokenizer(text).input_ids
    word = changed.tokenizer.convert_tokens_to_ids(["style", "style_1"])
    assert changed.tokenizer("\u017ftyle style").input_ids[-3:-1] == word


def test_lengths_masks_and_padding_count_every_token(tmp_path):
    pipe = with_embedding(tmp_path)
    denoiser = Denoiser(pipe, 4, 4.0)
    assert denoiser.lengths(["style", "a style", ""]).tolist() == [5, 6, 2]
    request = denoiser.request(["a style", "a"], [1, 2])
    masked = CrossAttention(mask="padding").adjust(denoiser, request, {})
    assert masked.attention_mask.sum(1).tolist() == [6, 3]
    # no padding is changed by a share of none, so this is what is encoded ordinarily
    assert torch.equal(_filled_up(denoiser, ["a style"], 0.0), denoiser.encode(["a style"]))
    room = pipe.tokenizer.model_max_length - 2
    full = " ".join(["fox"] * (room - 3)) + " style"
    for prompt, cut in ((full, False), (f"a {full}", True)):
        with_prompts(denoiser, request := denoiser.request([prompt], [1]), [prompt])
        assert request.facts["truncated"] == [cut]


def test_random_tokens_are_drawn_from_the_models_own_words(tmp_path):
    plain, changed = twins(build_tiny_pipeline())
    with_embedding(tmp_path, pipe=changed)
    found = [
        RandomTokens(count=8).adjust(one, one.request(CAPTIONS[:4], range(4)), {}).prompts
        for one in (Denoiser(plain, 4, 4.0), Denoiser(changed, 4, 4.0))
    ]
    assert found[0] == found[1]


def test_every_other_word_and_weight_stays_as_it_was(tmp_path):
    plain, changed = twins(build_tiny_pipeline())
    with_embedding(tmp_path, pipe=changed)
    assert torch.equal(*(Denoiser(pipe, 4, 4.0).encode(CAPTIONS) for pipe in (plain, changed)))
    before, after = (dict(pipe.text_encoder.named_parameters()) for pipe in (plain, changed))
    table = next(name for name in before if "token_embedding" in name)
    assert torch.equal(after[table][: len(before[table])], before[table])
    assert torch.equal(after[table][len(before[table]) :], drawn(3, 32))
    assert all(torch.equal(after[name], before[name]) for name in before if name != table)


def test_several_words_stand_beside_each_other(tmp_path):
    pipe = with_embedding(tmp_path)
    other = written(tmp_path, {"emb_params": drawn(2, 32, seed=9)}, "bad-style.safetensors")
    insert(pipe, [read_embedding(other)])
    names = ["bad-style", "bad-style_1", "style", "style_1", "style_2"]
    wanted = pipe.tokenizer.convert_tokens_to_ids(names)
    assert pipe.tokenizer("bad-style style").input_ids[1:-1] == wanted


# --- what is refused


def test_files_that_are_no_textual_inversion_are_refused_in_one_line(tmp_path):
    said = refused(lambda: read_embedding(tmp_path / "old.pt"))
    assert "old.pt is a pickle, and loading one runs its code: convert it to safetensors" in said
    assert "there is no embedding file" in refused(lambda: read_embedding(tmp_path / "x"))
    assert "may hold several embeddings" in refused(lambda: read_embedding(tmp_path))
    (tmp_path / "odd.safetensors").write_bytes(b"no")
    assert "no readable" in refused(lambda: read_embedding(tmp_path / "odd.safetensors"))

    def of(**tensors):
        return refused(lambda: read_embedding(written(tmp_path, tensors)))

    assert "holds 2 tensors, first a" in of(a=drawn(2), b=drawn(2))
    assert "no textual inversion" in of(clip_g=drawn(2, 32))
    assert "shape (2, 2, 2)" in of(emb_params=drawn(2, 2, 2))
    assert "int64" in of(emb_params=torch.ones(2, 2, dtype=torch.int64))
    assert "2 and 3 vectors" in of(clip_l=drawn(2, 32), clip_g=drawn(3, 32))
    assert "NaN" in of(emb_params=torch.tensor([[float("nan")]]))
    spaced = written(tmp_path, {"emb_params": drawn(2, 32)}, "my style.safetensors")
    assert "cannot be a word of a prompt" in refused(lambda: read_embedding(spaced))
    assert read_embedding(spaced, "mine").tokens == ["mine", "mine_1"]


def test_vectors_of_another_model_and_words_that_are_there_are_refused(tmp_path):
    def of(tensors, pipe=None, token="", name="style.safetensors"):
        one = read_embedding(written(tmp_path, tensors, name), token)
        return refused(lambda: insert(pipe or build_tiny_pipeline(), [one]))

    both = {"clip_l": drawn(1, 32), "clip_g": drawn(1, 32)}
    assert "made for width 1024 (SD 2), the model has 32" in of({"emb_params": drawn(1, 1024)})
    assert "two text encoders (clip_l and clip_g)" in of(both)
    xl = build_tiny_xl_pipeline()
    assert "with one text encoder, and the model is Stable Diffusion XL" in of(
        {"emb_params": drawn(1, 32)}, xl
    )
    wide = both | {"clip_g": drawn(1, 1280)}
    assert "made for width 1280, the model has 32" in of(wide, xl)
    known = "the model's tokenizer has the token '{}' already"
    assert known.format("a</w>") in of({"emb_params": drawn(1, 32)}, token="a</w>")
    assert known.format("A") in of({"A": drawn(1, 32)})
    # CLIP's vocabulary writes a word that is one token with </w> behind it
    own = build_tiny_pipeline().tokenizer.get_vocab()
    whole = max((one for one in own if one.endswith("</w>")), key=len).removesuffix("</w>")
    assert whole not in own
    for token in (whole, whole.upper()):
        assert known.format(token) in of({"emb_params": drawn(2, 32)}, token=token)
    pipe = with_embedding(tmp_path, count=2)
    assert known.format("style_1") in of({"style_1": drawn(1, 32)}, pipe)
    assert "room for" in of({"emb_params": drawn(100, 32)}, token="many")


# --- in a suite


def suite_with(folder, tiny_folder, *tables, name="mine"):
    given = "".join(f"[[model.embeddings]]\n{table}\n" for table in tables)
    (folder / f"{name}.toml").write_text(
        f'extends = "{tiny_folder / "tiny.toml"}"\nname = "{name}"\n{given}'
    )
    return load_suite(str(folder / f"{name}.toml"))


def test_who_a_suite_is_follows_the_numbers_and_the_word(tmp_path, tiny_folder, tiny_suite):
    assert "embeddings" not in tiny_suite.generation
    vectors = {"emb_params": drawn(2, 32)}
    written(tmp_path, vectors), written(tmp_path, vectors, "mine.safetensors", {"ss_tag": "x"})
    one = suite_with(tmp_path, tiny_folder, 'path = "style.safetensors"')
    assert list(one.embedding_digests) == ["style"]
    same = suite_with(tmp_path, tiny_folder, 'path = "mine.safetensors"\ntoken = "style"')
    assert (same.generation, same.fingerprint) == (one.generation, one.fingerprint)
    other = suite_with(tmp_path, tiny_folder, 'path = "mine.safetensors"')
    plain = suite_with(tmp_path, tiny_folder)
    assert len({each.fingerprint for each in (one, other, plain)}) == 3
    assert plain.generation == tiny_suite.generation != one.generation != other.generation
    read, by_hand = load_denoiser(one, CPU), load_pipeline(plain, CPU)
    by_hand = Denoiser(with_embedding(tmp_path, 2, by_hand), 4, 4.0)
    assert torch.equal(read.encode(["style"]), by_hand.encode(["style"]))
    # the base reads prompts as the model does; without weights that were trained there is none
    assert one.base is None


def test_a_suite_of_another_folder_finds_the_file(tmp_path, tiny_folder):
    (tmp_path / "inner").mkdir(), (tmp_path / "outer").mkdir()
    written(tmp_path / "inner", {"emb_params": drawn(2, 32)})
    inner = suite_with(tmp_path / "inner", tiny_folder, 'path = "style.safetensors"')
    file = tmp_path / "outer/wide.toml"
    file.write_text(f'extends = "{tmp_path / "inner/mine.toml"}"\nname = "wide"\n')
    assert load_suite(str(file)).generation == inner.generation


def test_what_is_wrong_in_a_suite_is_one_line(tmp_path, tiny_folder):
    lost = suite_with(tmp_path, tiny_folder, 'path = "lost.safetensors"')
    assert "is missing" in refused(lambda: lost.fingerprint)
    looked = look(str(tmp_path / "mine.toml")).files
    assert [one.problem for one in looked if one.what == "embedding"] == ["missing"]
    (tmp_path / "old.pt").write_bytes(b"x")
    pickled = suite_with(tmp_path, tiny_folder, 'path = "old.pt"')
    assert "is a pickle" in refused(lambda: pickled.generation)
    written(tmp_path, {"emb_params": drawn(2, 32)})
    twice = suite_with(tmp_path, tiny_folder, *['path = "style.safetensors"'] * 2)
    assert "two files" in refused(lambda: twice.fingerprint)
    known = suite_with(tmp_path, tiny_folder, 'path = "style.safetensors"\ntoken = "a</w>"')
    assert "already" in refused(lambda: load_pipeline(known, CPU))
