"""Adversarial fine-tuning: the search is the attack's, nothing of the outer loss reaches it, and
the control without it is the plain loop.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks.dori import Dori
from bench.base.errors import UserError
from bench.base.pictures import encode_png
from bench.contracts.fine_tuning import fine_tuned
from bench.contracts.held import Held, Known
from bench.contracts.method import CopyJudge, FitData
from bench.suite.prompts import Prompt
from bench.training.denoising import Denoising
from bench.training.loop import Course
from conftest import CAPTIONS
from methods._erasure import Noising, generated, own_seed, parameters_of, pictures_apart
from methods._search import searched
from methods.adv_finetune import AdvFinetune

FEW = {
    "epochs": 2,
    "named": 2,
    "regular": 2,
    "regular_pictures": 3,
    "surrogates": 2,
    "tries": 2,
    "inner_steps": 2,
    "inner_batch": 2,
    "learning_rate": 0.01,
}


def greys(pictures):
    rows = np.stack([picture.reshape(-1) for picture in pictures]).astype(np.float32) - 127.5
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    pictures = {}
    for row, caption in enumerate(CAPTIONS[:2]):
        file = tmp_path / f"{row}.png"
        file.write_bytes(encode_png(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
        pictures[caption] = (file,)
    return FitData(
        tuple(CAPTIONS[:2]),
        tuple(CAPTIONS[3:]),
        pictures,
        {CAPTIONS[0]: "an apple"},
        CopyJudge(greys, 0.9),
    )


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("init", ["prompt", "normal"])
def test_the_search_is_the_attacks_bit_for_bit(denoiser, data, init):
    known = [
        Known(Prompt(f"p{i}", text, "", data.training_images[text]), path, True, (1,), 0)
        for i, text in enumerate(data.fit_prompts)
        for path in data.training_images[text]
    ]
    held = Held("edited", denoiser, 32, None)
    found = Dori(curve=(0, 3), batch=2, init=init).one_search(held, known, (), 0)
    streams = [(one.random("dori", 0, "time"), one.random("dori", 0, "noise")) for one in known]
    begun = (
        denoiser.encode(data.fit_prompts)
        if init == "prompt"
        else torch.stack(
            [torch.randn(24, 32, generator=one.random("dori", 0, "init")) for one in known]
        )
    )
    given = searched(
        denoiser.pipe.unet, Noising(denoiser), held.latents(known), begun, streams, 3, 0.1, 2
    )
    assert np.array_equal(given.numpy(), np.stack([one["embeddings"][-1] for one in found]))
    assert np.array_equal(begun.float().numpy(), np.stack([o["embeddings"][0] for o in found]))


def test_the_search_leaves_the_weights_alone_and_keeps_no_graph(denoiser, data):
    unet = denoiser.pipe.unet
    unet.requires_grad_(True)
    before, spent = [value.clone() for value in unet.parameters()], denoiser.evaluations
    noising, method = Noising(denoiser), AdvFinetune(**FEW)
    real = torch.randn(2, 4, 8, 8)
    found = method.adversarial(
        unet, noising, real, denoiser.encode(CAPTIONS[:2]), list(CAPTIONS[:2]), 0
    )
    assert not found.requires_grad and found.grad_fn is None
    assert all(value.grad is None and value.requires_grad for value in unet.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))
    # weights take no part: a row forward, a row backward
    assert denoiser.evaluations - spent == 2 * 2 * 2 * 2
    unet.requires_grad_(False)


def test_beginnings_alternate_by_visit_and_streams_do_not_hang_on_the_batch(denoiser):
    noising, method = Noising(denoiser), AdvFinetune(**FEW | {"inner_steps": 0})
    own, names = denoiser.encode(CAPTIONS[:2]), list(CAPTIONS[:2])
    real = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def visit(number, rows=slice(None)):
        return method.adversarial(
            denoiser.pipe.unet, noising, real[rows], own[rows], names[rows], number
        )

    assert torch.equal(visit(0), own) and torch.equal(visit(2), own)
    assert not torch.equal(visit(1), own) and not torch.equal(visit(1), visit(3))
    assert torch.equal(visit(1)[1:], visit(1, slice(1, 2)))
    searching = AdvFinetune(**FEW)
    both, alone = (
        searching.adversarial(denoiser.pipe.unet, noising, real[rows], own[rows], names[rows], 1)
        for rows in (slice(None), slice(1, 2))
    )
    # A search by gradients carries the rounding of other numbers of rows on.
    torch.testing.assert_close(both[1:], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("without", [{"adversary": "none"}, {"weight": 0.0}])
def test_without_the_adversarial_loss_it_is_the_plain_loop(denoiser, data, without):
    method = AdvFinetune(**FEW | without)
    state = method.fit(denoiser, data)
    captions = list(data.clean_prompts)
    latents = generated(denoiser, captions, [own_seed(0, "regular", text) for text in captions])
    moments = torch.stack([latents, torch.zeros_like(latents)], 1)[:, None].numpy()
    loss = Denoising(denoiser.pipe, moments, captions, np.arange(3), 2, 0, denoiser.device)
    course = Course(steps=2, learning_rate=0.01)
    names = parameters_of(denoiser.pipe.unet, "all")
    assert same(state, fine_tuned(denoiser, FitData(), names, course, loss))


def test_the_controls_differ_from_it_and_take_the_same_steps(denoiser, data):
    given = {
        kind: AdvFinetune(**FEW, adversary=kind).fit(denoiser, data)
        for kind in ("dori", "prompt", "none")
    }
    assert not same(given["dori"], given["prompt"])
    assert not same(given["prompt"], given["none"])
    assert AdvFinetune(**FEW | {"epochs": 0}).fit(denoiser, data) == {}


def test_a_fit_that_was_killed_goes_on_to_the_same_bits(denoiser, data, tmp_path, monkeypatch):
    method, spent = AdvFinetune(**FEW), denoiser.evaluations
    undisturbed = method.fit(denoiser, data)
    of_whole, credited = denoiser.evaluations - spent, []
    kept = replace(
        data, folder=tmp_path / "fit", credit=lambda seconds, rows: credited.append(rows)
    )
    calls, searching = [0], AdvFinetune.adversarial

    def dying(self, *arguments):
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return searching(self, *arguments)

    monkeypatch.setattr(AdvFinetune, "adversarial", dying)
    with pytest.raises(KeyboardInterrupt):
        method.fit(denoiser, kept)
    monkeypatch.undo()
    credited.clear()
    before = denoiser.evaluations
    assert same(method.fit(denoiser, kept), undisturbed)
    assert len(credited) == 3  # regular pictures, surrogates, training
    assert sum(credited) + denoiser.evaluations - before == of_whole


def test_surrogates_are_no_copies(denoiser, data):
    """One that is too alike is not taken, and where none is left the fit is refused."""
    first = data.fit_prompts[0]
    made = pictures_apart(denoiser, data, {first: first}, 2, 2.0, 4, 0)[first]
    pictures = denoiser.decode(made[0])
    known = data.judge.similarity(list(pictures), data.training_images[first])
    np.testing.assert_allclose(made[1], known, atol=1e-6)
    ordered = pictures_apart(denoiser, data, {first: first}, 4, -1.0, 4, 0)[first]
    assert (np.diff(ordered[1]) >= 0).all()  # none is apart: the least alike come first
    strict = replace(data, judge=CopyJudge(greys, -0.9))
    with pytest.raises(UserError, match="neither the pruned model nor a clean caption"):
        AdvFinetune(**FEW).fit(denoiser, strict)
