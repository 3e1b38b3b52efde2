"""Other padding: which embeddings change, and that nothing else does."""

from __future__ import annotations

import copy

import pytest
import torch

from bench import UserError
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.request import HandedIn
from bench.running.sampling import sample
from conftest import CAPTIONS, build_tiny_pipeline
from methods.clip_pad import ClipPad

LONG = " ".join(CAPTIONS * 3)
PROMPTS, SEEDS = [CAPTIONS[1], CAPTIONS[0], CAPTIONS[1], LONG, ""], [5, 6, 7, 8, 9]


def adjusted(denoiser, method):
    request = denoiser.request(PROMPTS, SEEDS)
    return request, method.adjust(denoiser, request, {})


def padded_with_exclamation_marks(denoiser, prompts):
    """What the pipeline itself encodes once its tokenizer is another one, row by row."""
    pipe = denoiser.pipe
    original = pipe.tokenizer
    pipe.tokenizer = copy.deepcopy(original)
    pipe.tokenizer.pad_token = "!"
    try:
        return torch.cat([pipe.encode_prompt([p], denoiser.device, 1, False)[0] for p in prompts])
    finally:
        pipe.tokenizer = original


@pytest.fixture
def like_sd2():
    """The tiny model with a tokenizer that fills up with "!" already."""
    pipe = build_tiny_pipeline()
    pipe.tokenizer.pad_token = "!"
    denoiser = Denoiser(pipe, steps=3, guidance_scale=4.0)
    yield denoiser
    denoiser.close()


@pytest.mark.parametrize("null", ["same", "original"])
@pytest.mark.parametrize("variant", ["pad", "eot"])
def test_padding_is_as_of_a_tokenizer_that_fills_up_with_it(denoiser, variant, null):
    request, found = adjusted(denoiser, ClipPad(variant=variant, null=null))
    expected = padded_with_exclamation_marks(denoiser, PROMPTS)
    ends = denoiser.lengths(PROMPTS) - 1
    assert ends.tolist() == [*ends[:3].tolist(), 23, 1]
    if variant == "eot":
        for row, end in enumerate(ends.tolist()):
            expected[row, end] = 0
            assert not found.embeddings[row, end].any()
    torch.testing.assert_close(found.embeddings, expected)
    if null == "same":
        torch.testing.assert_close(
            found.null_embeddings, padded_with_exclamation_marks(denoiser, [""] * len(PROMPTS))
        )
        assert not torch.allclose(found.null_embeddings, request.null_embeddings)
    else:
        assert torch.equal(found.null_embeddings, request.null_embeddings)


def test_a_part_of_the_padding_is_other_tokens_from_the_end_on(denoiser):
    """By ids that are written out one by one."""
    request, found = adjusted(denoiser, ClipPad(variant="pad", share=0.5, null="original"))
    tokenizer = denoiser.pipe.tokenizer
    for row, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, truncation=True, max_length=24).input_ids
        padding = 24 - len(ids)
        first = int(padding * 0.5)
        ids += [tokenizer.convert_tokens_to_ids("!")] * first
        ids += [tokenizer.pad_token_id] * (padding - first)
        with torch.no_grad():
            expected = denoiser.pipe.text_encoder(torch.tensor([ids]))[0][0]
        torch.testing.assert_close(found.embeddings[row], expected)
    none = ClipPad(variant="pad", share=0).adjust(denoiser, request, {})
    torch.testing.assert_close(none.embeddings, request.embeddings)


def test_words_keep_their_embeddings(denoiser):
    request, found = adjusted(denoiser, ClipPad())
    for row, end in enumerate((denoiser.lengths(PROMPTS) - 1).tolist()):
        torch.testing.assert_close(found.embeddings[row, :end], request.embeddings[row, :end])


def test_a_share_of_the_padding_is_zero(denoiser):
    for share in (0.3, 0.7, 1.0):
        request, found = adjusted(denoiser, ClipPad(variant="ratio", share=share))
        expected = request.embeddings.clone()
        for row, end in enumerate((denoiser.lengths(PROMPTS) - 1).tolist()):
            after = 24 - (end + 1)
            expected[row, end + 1 : end + 1 + int(after * share)] = 0
        assert torch.equal(found.embeddings, expected)
        assert found.null_embeddings is request.null_embeddings


def test_a_share_is_cut_as_the_code_cuts_it(denoiser):
    """Whatever the length of a prompt, `int` of a product in double precision."""
    for words in range(22):
        prompt, end = " ".join(["a"] * words), words + 1
        request = denoiser.request([prompt], [0])
        request = request.replace(embeddings=torch.ones_like(request.embeddings))
        assert int(denoiser.lengths([prompt])[0]) - 1 == end
        for share in (0.1, 0.3, 0.7):
            found = ClipPad(variant="ratio", share=share).adjust(denoiser, request, {})
            assert int((found.embeddings == 0).all(-1).sum()) == int((23 - end) * share)


def test_where_padding_is_so_already_only_the_end_changes(like_sd2):
    request, found = adjusted(like_sd2, ClipPad(variant="pad"))
    assert found.embeddings is request.embeddings
    assert found.null_embeddings is request.null_embeddings
    assert torch.equal(
        sample(like_sd2, request, ClipPad(variant="pad"), {}),
        sample(like_sd2, like_sd2.request(PROMPTS, SEEDS), Method(), {}),
    )
    request, found = adjusted(like_sd2, ClipPad(variant="eot"))
    changed = (found.embeddings != request.embeddings).any(-1)
    assert torch.equal(changed, torch.arange(24) == (like_sd2.lengths(PROMPTS) - 1)[:, None])


@pytest.mark.parametrize("variant", ["eot", "pad", "ratio"])
def test_the_tokenizer_and_the_count_of_evaluations_stay(denoiser, variant):
    tokenizer = denoiser.pipe.tokenizer
    state = (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer))
    special = dict(tokenizer.special_tokens_map)
    ids, before = tokenizer(PROMPTS, padding="max_length").input_ids, denoiser.evaluations
    adjusted(denoiser, ClipPad(variant=variant))
    assert denoiser.pipe.tokenizer is tokenizer and denoiser.evaluations == before
    assert state == (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer))
    assert special == tokenizer.special_tokens_map
    assert ids == tokenizer(PROMPTS, padding="max_length").input_ids


@pytest.mark.parametrize("variant", ["eot", "pad", "ratio"])
def test_a_batch_equals_its_images_alone_and_differs_from_none(denoiser, variant):
    method, prompts = ClipPad(variant=variant), PROMPTS[:3]
    together = sample(denoiser, denoiser.request(prompts, SEEDS[:3]), method, {})
    none = sample(denoiser, denoiser.request(prompts, SEEDS[:3]), Method(), {})
    assert not torch.allclose(together, none, atol=1e-4)
    for row in range(3):
        alone = sample(denoiser, denoiser.request([prompts[row]], [SEEDS[row]]), method, {})
        torch.testing.assert_close(alone[0], together[row], atol=2e-4, rtol=1e-4)


def test_neutral_parameters_are_none_bit_for_bit(denoiser):
    method = ClipPad(**ClipPad.neutral)
    assert torch.equal(
        sample(denoiser, denoiser.request(PROMPTS, SEEDS), method, {}),
        sample(denoiser, denoiser.request(PROMPTS, SEEDS), Method(), {}),
    )


def test_a_vocabulary_without_the_token_is_refused(denoiser, monkeypatch):
    monkeypatch.setattr(type(denoiser.pipe.tokenizer), "get_vocab", lambda self: {"a": 1})
    with pytest.raises(UserError, match="no token '!'"):
        adjusted(denoiser, ClipPad())


def test_an_embedding_that_is_handed_in_is_not_made_anew(denoiser):
    request = denoiser.request(["a fox"], [0])
    given = torch.full_like(request.embeddings, 0.5)
    prompt = HandedIn("a fox", given[0])
    handed = request.replace(prompts=(prompt,), embeddings=given)
    adjusted = ClipPad(variant="eot").adjust(denoiser, handed, {})
    end = int(denoiser.lengths(["a fox"])[0]) - 1
    assert not adjusted.embeddings[0, end].any()
    kept = [token for token in range(given.shape[1]) if token != end]
    assert torch.equal(adjusted.embeddings[0, kept], given[0, kept])
