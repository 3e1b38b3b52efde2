"""Copies of any training picture, against one pair of pictures at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import Evaluation, Unmeasurable, read_picture
from bench.features import CopyDescriptor
from metrics.any_copy import AnyCopy

CPU = torch.device("cpu")


@pytest.fixture
def setting(tiny_suite):
    """Generations of which some are training pictures: the prompt's own, and a fit prompt's."""
    memorized, fit = tiny_suite.prompts("memorized"), tiny_suite.prompts("fit")
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (len(memorized), 2, 32, 32, 3), dtype=np.uint8)
    pictures[0, 1] = read_picture(memorized[0].references[0])
    pictures[1, 0] = read_picture(fit[0].references[0])  # another prompt's picture
    given = {"memorized": (memorized, pictures), "clean": (tiny_suite.prompts("clean"), pictures)}

    def samples(role):
        prompts, shown = given[role]
        return SimpleNamespace(
            prompts=prompts[: len(shown)],
            features=lambda extractor: np.stack([extractor(list(row)) for row in shown]),
        )

    return pictures, Evaluation(tiny_suite, CPU, samples, time=None)


def test_a_copy_of_another_prompts_picture_counts(setting, tiny_suite, tiny_folder):
    pictures, evaluation = setting
    weights = tiny_folder / "descriptor.safetensors"
    describe = CopyDescriptor(weights, "testbed", CPU)
    named = [*tiny_suite.prompts("memorized"), *tiny_suite.prompts("fit")]
    training = [describe([read_picture(prompt.references[0])])[0] for prompt in named]
    nearest = np.array(
        [[max(float(describe([p])[0] @ t) for t in training) for p in row] for row in pictures]
    )
    threshold = 0.9999
    metric = AnyCopy(weights="./descriptor.safetensors", profile="testbed", threshold=threshold)
    scores = metric.measure(evaluation)
    assert scores["any_copy"].table.tolist() == (nearest > threshold).astype(float).tolist()
    assert scores["any_copy"].table[0, 1] == scores["any_copy"].table[1, 0] == 1
    assert scores["any_copy_clean"].table.sum() == scores["any_copy"].table.sum()
    assert scores["any_copy"].details["training_pictures"] == len(named)


def test_without_any_training_picture_there_is_no_number():
    bare = SimpleNamespace(training_pictures=())
    metric = AnyCopy(weights="./descriptor.safetensors", profile="testbed")
    with pytest.raises(Unmeasurable, match="no prompt of the suite has a training picture"):
        metric.measure(Evaluation(bare, CPU, None, time=None))
