"""The floors: what a prompt's text alone says."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest
from analytic import analytic, gaussian
from observing import observe

from bench import Unmeasurable
from bench.diffusion.denoiser import Denoiser
from bench.suite.prompts import Prompt
from metrics.detectors.length import Length
from metrics.detectors.rarity import Rarity
from metrics.detectors.tokens import Tokens


def reading(prompts, calibration=()):
    """An observation of texts, without a model that could be asked."""
    seen = observe(analytic(gaussian()), prompts, 2, calibration=calibration)

    def none():
        raise AssertionError("a text detector asked for the model")

    return replace(seen, denoiser_=none)


def test_floors_are_free_and_give_one_number_a_prompt():
    seen = reading(["one", "two words"], ["one"])
    for detector in (Length(), Rarity()):
        assert detector.needs == "text" and detector.rows(50) == (0, 0)
        scores = detector.score(seen)
        assert scores.shape == (2, 1)
        assert np.array_equal(detector.of_prompt(scores), scores[:, 0])


def test_length_counts_words():
    assert Length().score(reading([" a  red, apple\n", "", "x"]))[:, 0].tolist() == [3, 0, 1]


def test_tokens_are_the_tokenizers_with_beginning_and_end(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, 2, 4.0)
    prompts = ["a red apple", "a", "fox " * 500]
    seen = observe(denoiser, prompts, 1)
    before = denoiser.evaluations
    scores = Tokens().score(seen)
    denoiser.close()
    most = tiny_pipe.tokenizer.model_max_length
    expected = [min(len(tiny_pipe.tokenizer(text).input_ids), most) for text in prompts]
    assert scores.tolist() == [[count] for count in expected] and expected[2] == most
    assert Tokens().rows(50) == (0, 0) and denoiser.evaluations == before


def test_rarity_by_hand():
    # five words, three of which differ
    seen = reading(["A cat!", "cat-dog 2x", "zebra", "42 :)"], ["a cat", "A Cat, bird"])
    a = cat = -log((2 + 1) / (5 + 3))
    new = -log(1 / (5 + 3))
    expected = [(a + cat) / 2, (cat + new + new) / 3, new, 0]
    np.testing.assert_allclose(Rarity().score(seen)[:, 0], expected, rtol=1e-12)


def test_rarity_knows_letters_beyond_ascii_and_is_blind_to_case():
    seen = reading(["ÉTÉ", "été", "e"], ["été"])
    scores = Rarity().score(seen)[:, 0]
    assert scores[0] == scores[1] < scores[2]


def test_rarity_without_calibration_captions_is_unmeasurable():
    for captions in ((), ("12 :)",)):
        with pytest.raises(Unmeasurable, match="calibration"):
            Rarity().score(reading(["a"], captions))


def test_floors_ignore_everything_but_the_text():
    seen = reading(["a cat"], ["a"])
    other = replace(seen, prompts=(Prompt("q", "a cat", "10", (), 7),), seeds=seen.seeds + 5)
    for detector in (Length(), Rarity()):
        assert np.array_equal(detector.score(seen), detector.score(other))
