"""Negative guidance of the frozen model: its target, its latents, and that nothing is taught where
nothing is asked for.
"""

import torch

from bench.contracts.method import FitData
from bench.diffusion.denoiser import trajectory
from conftest import CAPTIONS
from methods._erasure import parameters_of
from methods.esd import Esd

DATA = FitData(fit_prompts=tuple(CAPTIONS[:2]), anchors={CAPTIONS[0]: "an apple"})
FEW = {"iterations": 2, "batch": 2, "learning_rate": 0.01}


def test_the_codes_strength_of_two_is_the_papers_of_one():
    own, empty = torch.randn(2, 3, 4, 4).unbind(0)
    torch.testing.assert_close(Esd(eta=2).target(own, empty), empty - 1.0 * (own - empty))
    torch.testing.assert_close(Esd(eta=1).target(own, empty), empty)
    assert torch.equal(Esd(eta=0).target(own, empty), own)
    anchor = torch.randn_like(own)
    torch.testing.assert_close(Esd(eta=2).target(own, empty, anchor), anchor - 2 * (own - empty))


def test_without_strength_the_gradient_is_nothing_at_the_beginning(denoiser):
    assert Esd(eta=0, **FEW).fit(denoiser, DATA) == {}


def test_the_parts_are_apart_and_make_up_the_whole(denoiser):
    unet = denoiser.pipe.unet
    names = {part: set(parameters_of(unet, part)) for part in ("cross", "other", "strict", "all")}
    assert names["cross"] | names["other"] == names["all"] == dict(unet.named_parameters()).keys()
    assert not names["cross"] & names["other"]
    assert names["strict"] < names["cross"]
    state = Esd(part="u", **FEW).fit(denoiser, DATA)
    assert state and set(state) <= names["other"]


def test_latents_are_those_of_the_run_stopped_at_the_step(denoiser):
    embeddings = denoiser.encode(CAPTIONS[:1])
    given = Esd(guidance=3).latents(denoiser, embeddings, [5], 2)
    request = denoiser.request(CAPTIONS[:1], [5]).replace(guidance_scale=3.0)
    with torch.no_grad():
        run = trajectory(denoiser, request, lambda step: step.guided(3.0), calls=2)
    assert torch.equal(given, run)
    begun = Esd().latents(denoiser, embeddings, [5], 0)
    assert torch.equal(begun, denoiser.start(request.latents)[0])


def test_the_frozen_model_teaches_and_the_trained_one_learns(denoiser):
    """One step from the beginning: the trained parameters move, and the target stays that of the
    frozen model at the second step too, so that a repeated fit gives the same bits.
    """
    first, again = (Esd(**FEW).fit(denoiser, DATA) for _ in range(2))
    assert first.keys() == again.keys() and first
    assert all(torch.equal(first[name], again[name]) for name in first)
    towards = Esd(towards="anchor", **FEW).fit(denoiser, DATA)
    assert any(not torch.equal(towards[name], first[name]) for name in first)
