"""The share of clean generations that show what was asked for, against one picture at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import Evaluation, Prompt, Unmeasurable
from bench.features import ObjectRecogniser
from metrics.recognised import Recognised

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)
TEXTS = ("a drawing of an apple", "a fox and a key", "a bus")


def an_evaluation(suite, texts):
    prompts = tuple(Prompt(f"c{i}", text, "", ()) for i, text in enumerate(texts))
    samples = SimpleNamespace(
        prompts=prompts,
        images=4,
        features=lambda extractor: np.stack([extractor(list(row)) for row in PICTURES]),
    )
    return Evaluation(suite, torch.device("cpu"), lambda role: samples, time=None)


def test_an_image_is_right_when_its_first_object_is_one_that_the_prompt_names(
    tiny_suite, tiny_folder
):
    metric = Recognised(weights="./objects.safetensors")
    score = metric.measure(an_evaluation(tiny_suite, TEXTS))["recognised"]
    recogniser = ObjectRecogniser(tiny_folder / "objects.safetensors", torch.device("cpu"))
    asked = [{"apple"}, {"fox", "key"}, {"bus"}]
    slow = [
        [recogniser.names[int(recogniser([picture])[0].argmax())] in names for picture in row]
        for row, names in zip(PICTURES, asked, strict=True)
    ]
    assert score.table.tolist() == [[float(right) for right in row] for row in slow]
    assert score.proportion and score.higher_is_better


def test_a_prompt_that_names_nothing_is_refused_by_its_id(tiny_suite):
    metric = Recognised(weights="./objects.safetensors")
    with pytest.raises(Unmeasurable, match="'c1' names none of the 8 objects"):
        metric.measure(an_evaluation(tiny_suite, ("an apple", "a zebra", "a bus")))
