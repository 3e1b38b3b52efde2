"""Closed-form editing against its least-squares problem and its limits."""

import pytest
import torch

from bench.contracts.method import FitData
from conftest import CAPTIONS
from methods._erasure import parameters_of
from methods.uce import Uce

DATA = FitData(
    fit_prompts=(CAPTIONS[1], CAPTIONS[4]),
    anchors={CAPTIONS[1]: "a fox", CAPTIONS[4]: "a picture of a tent"},
    clean_prompts=(CAPTIONS[3], CAPTIONS[5]),
)


def rows(count, size=8, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_the_edit_is_the_least_squares_solution(denoiser, tokens):
    """The gradient of the objective vanishes there, term by term as the paper writes it."""
    method = Uce(erase=2.0, preserve=3.0, ridge=0.7, tokens=tokens, clean=2)
    state = method.fit(denoiser, DATA)
    weights = dict(denoiser.pipe.unet.named_parameters())
    assert sorted(state) == sorted(parameters_of(denoiser.pipe.unet, "strict"))
    name = min(state)
    old = weights[name].detach().double()
    new = old @ factor_of(denoiser, method)
    torch.testing.assert_close(state[name], new.float())
    new.requires_grad_()
    objective = method.ridge * (new - old).square().sum()
    for prompt in DATA.fit_prompts:
        own, to = method.pair(denoiser, prompt, DATA.anchors[prompt])
        for c, c_to in zip(own, to, strict=True):
            objective = objective + method.erase * (new @ c - old @ c_to).square().sum()
    for prompt in DATA.clean_prompts:
        for q in method.pair(denoiser, prompt, prompt)[0]:
            objective = objective + method.preserve * ((new - old) @ q).square().sum()
    (gradient,) = torch.autograd.grad(objective, [new])
    assert gradient.abs().max() < 1e-8 * objective.detach().abs().max().clamp_min(1)


def factor_of(denoiser, method):
    pairs = [method.pair(denoiser, p, DATA.anchors[p]) for p in DATA.fit_prompts]
    clean = [method.pair(denoiser, p, p)[0] for p in DATA.clean_prompts]
    return method.factor(
        torch.cat([own for own, _ in pairs]), torch.cat([to for _, to in pairs]), torch.cat(clean)
    )


def test_with_all_weight_on_erasing_named_rows_read_as_their_anchors():
    named, towards, weight = rows(3), rows(3, seed=1), rows(5, seed=2)
    edited = weight @ Uce(erase=1e9).factor(named, towards, named[:0])
    torch.testing.assert_close(edited @ named.T, weight @ towards.T, atol=1e-6, rtol=1e-6)


def test_what_is_orthogonal_to_all_rows_reads_as_before():
    named, clean = rows(3), rows(2, seed=1)
    basis = torch.linalg.qr(torch.cat([named, clean]).T, mode="complete").Q
    beside = basis[:, 5:]
    factor = Uce().factor(named, rows(3, seed=2), clean)
    torch.testing.assert_close(factor @ beside, beside)


def test_a_caption_that_shall_read_like_itself_changes_nothing():
    named = rows(4)
    torch.testing.assert_close(Uce().factor(named, named, named[:0]), torch.eye(8).double())


def test_no_weight_or_no_caption_is_no_state_and_no_evaluation(denoiser):
    assert Uce(erase=0).fit(denoiser, DATA) == {}
    assert Uce().fit(denoiser, FitData()) == {}
    before = denoiser.evaluations
    Uce().fit(denoiser, DATA)
    assert denoiser.evaluations == before


def test_the_last_word_is_the_token_before_the_end(denoiser):
    tokenizer = denoiser.pipe.tokenizer
    ids = tokenizer([CAPTIONS[1]]).input_ids[0]
    own, to = Uce().pair(denoiser, CAPTIONS[1], "")
    embeddings = denoiser.encode([CAPTIONS[1], ""]).double()
    assert torch.equal(own[0], embeddings[0, len(ids) - 2])
    assert torch.equal(to[0], embeddings[1, 0])  # of the empty caption: its beginning
    own, to = Uce(tokens="all").pair(denoiser, CAPTIONS[1], "a fox")
    short = len(tokenizer(["a fox"]).input_ids[0])
    assert len(own) == len(to) == embeddings.shape[1] - (len(ids) - 2)
    assert torch.equal(to[0], denoiser.encode(["a fox"]).double()[0, short - 2])


def test_without_clean_prompts_none_are_asked_for():
    assert "clean_prompts" not in Uce().needed()
    assert "clean_prompts" in Uce(clean=5).needed()
