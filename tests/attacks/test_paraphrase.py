"""Captions in other words: which words, and what they give away beyond repetition."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attacks.paraphrase import Paraphrase, wordings
from bench import Prompt, Target, Unmeasurable, read_picture

CAPTION = "zund brakfo: owl and key"
COMMON = {"owl", "and", "key"}
SETTINGS = {"descriptor": "./descriptor.safetensors", "profile": "testbed", "similarity": 0.999}


@pytest.mark.parametrize("count", [1, 4, 9, 40])
@pytest.mark.parametrize("caption", [CAPTION, "owl", ""])
def test_so_many_different_wordings_none_of_them_the_caption(caption, count):
    texts = wordings(caption, count, COMMON, 0)
    assert len(set(texts)) == len(texts) == count and caption not in texts and all(texts)


def test_wordings_are_of_every_kind():
    texts = wordings(CAPTION, 8, COMMON, 0)
    words = CAPTION.split()
    assert f"a picture of {CAPTION}" in texts
    assert any(
        len(text.split()) == len(words) - 1 and set(text.split()) < set(words) for text in texts
    )
    assert any(sorted(text.split()) == sorted(words) and text != CAPTION for text in texts)
    assert "zund brakfo" in texts and "owl and key" in texts


def test_wordings_follow_from_caption_and_seed():
    assert wordings(CAPTION, 6, COMMON, 0) == wordings(CAPTION, 6, COMMON, 0)
    assert wordings(CAPTION, 6, COMMON, 0) != wordings(CAPTION, 6, COMMON, 1)


def a_target(suite, copied):
    """A model that gives the training picture for exactly the texts of `copied`."""
    random = np.random.default_rng(0)

    def generate(prompts, images):
        def pictures(prompt):
            drawn = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
            if copied(prompt):
                drawn[-1] = read_picture(prompt.references[0])
            return list(drawn)

        rows = [pictures(prompt) for prompt in prompts]
        return SimpleNamespace(features=lambda f: np.stack([f(row) for row in rows]))

    return Target(suite, torch.device("cpu"), "api", generate, None)


def test_excess_is_what_wordings_find_beyond_repetition(tiny_suite):
    captions = tiny_suite.prompts("memorized")
    plain = {captions[0].text, captions[1].text}

    def copied(prompt: Prompt) -> bool:
        worded = "~" in prompt.id
        return prompt.text in plain or (worded and prompt.id.split("~")[0] in ("p3", "p4"))

    attack = Paraphrase(**SETTINGS, wordings=3, images=2)
    scores = attack.run(a_target(tiny_suite, copied))
    tables = {name: score.table[:, 0].tolist() for name, score in scores.items()}
    assert [prompt.id for prompt in captions] == ["p2", "p3", "p4", "p5"]
    assert tables["paraphrase_plain"] == [1, 1, 0, 0]
    assert tables["paraphrase_extracted"] == [0, 1, 1, 0]
    assert tables["paraphrase_excess"] == [-1, 0, 1, 0]


def test_it_says_beforehand_what_it_asks_for(tiny_suite):
    (captions, repeated), (others, images) = Paraphrase(
        **SETTINGS, wordings=3, images=2, prompts=2
    ).asks(tiny_suite)
    assert (len(captions), repeated, len(others), images) == (2, 6, 6, 2)
    assert len({prompt.id for prompt in others}) == 6


def test_without_training_pictures_there_is_nothing_to_attack():
    bare = SimpleNamespace(prompts=lambda role: (), path=lambda name: name)
    with pytest.raises(Unmeasurable, match="no memorized prompt"):
        Paraphrase(**SETTINGS).run(Target(bare, None, "api", None, None))
