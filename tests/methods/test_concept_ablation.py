"""Named captions learn to be answered as their anchors, on pictures that are no copies."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.base.pictures import encode_png
from bench.contracts.method import CopyJudge, FitData
from conftest import CAPTIONS
from methods._erasure import Noising
from methods.concept_ablation import ConceptAblation
from methods.siss import Siss

FEW = {"learning_rate": 0.003, "pictures": 2, "tries": 2, "most": 1.0, "batch": 2}


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "0.png"
    random = np.random.default_rng(0)
    file.write_bytes(encode_png(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
    return FitData(
        (CAPTIONS[1],),
        (),
        {CAPTIONS[1]: (file,)},
        {CAPTIONS[1]: "a tent"},
        CopyJudge(lambda pictures: np.full((len(pictures), 1), 0.5, np.float32), 0.9),
    )


def distance(denoiser, method, state, one, other):
    """Between the answers to two captions on the same noise."""
    noising = Noising(denoiser)
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.arange(8) * 120
    with torch.no_grad(), method.attach(denoiser.pipe, state):
        answers = [
            noising.predicted(
                denoiser.pipe.unet, latents, times, denoiser.encode([text]).expand(8, -1, -1)
            )
            for text in (one, other)
        ]
    return float((answers[0] - answers[1]).square().mean())


def test_the_caption_comes_nearer_to_its_anchor(denoiser, data):
    method = ConceptAblation(steps=12, regularisation=0.0, **FEW)
    state = method.fit(denoiser, data)
    before = distance(denoiser, method, {}, CAPTIONS[1], "a tent")
    assert distance(denoiser, method, state, CAPTIONS[1], "a tent") < 0.7 * before


def test_evaluations_are_two_rows_forward_and_back_for_each_picture(denoiser, data, tmp_path):
    method = ConceptAblation(steps=3, **FEW)
    kept = replace(data, folder=tmp_path / "fit")
    method.fit(denoiser, replace(kept))
    (tmp_path / "fit" / "training").rename(tmp_path / "elsewhere")  # the pictures stay
    before = denoiser.evaluations
    method.fit(denoiser, kept)
    assert denoiser.evaluations - before == 3 * 2 * 2 * 3


def test_no_steps_are_no_state(denoiser, data):
    assert ConceptAblation(steps=0).fit(denoiser, data) == {}
    assert Siss(steps=0).fit(denoiser, data) == {}


def test_siss_pays_two_ways_back_for_each_row(denoiser, data, tmp_path):
    method = Siss(steps=2, accumulate=3, batch=1, pictures=2, tries=2, most=1.0)
    kept = replace(data, folder=tmp_path / "fit")
    first = method.fit(denoiser, kept)
    (tmp_path / "fit" / "training").rename(tmp_path / "elsewhere")
    before = denoiser.evaluations
    again = method.fit(denoiser, kept)
    assert denoiser.evaluations - before == 2 * 3 * (1 + 2 * 2)
    assert first and all(torch.equal(first[name], again[name]) for name in first)
