"""Spill-over and neighbours, against one pair of pictures at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import Evaluation, Unmeasurable, UserError, load_suite, read_picture
from bench.features import CopyDescriptor, OpenClip
from metrics.removal import Removal
from removal_suite import removal_folder

CPU = torch.device("cpu")
SETTINGS = {
    "weights": "./descriptor.safetensors",
    "profile": "testbed",
    "threshold": 0.9999,
    "clip": "./clip",
}


@pytest.fixture
def setting(tiny_folder, tmp_path):
    suite = load_suite(str(removal_folder(tiny_folder, tmp_path / "suite")))
    random = np.random.default_rng(0)
    unnamed, near = suite.prompts("unnamed"), suite.prompts("neighbours")
    shown = {
        "unnamed": random.integers(0, 256, (len(unnamed), 2, 32, 32, 3), dtype=np.uint8),
        "neighbours": random.integers(0, 256, (len(near), 1, 32, 32, 3), dtype=np.uint8),
    }
    shown["unnamed"][1, 0] = read_picture(unnamed[1].references[0])
    named = suite.prompts("memorized")
    shown["unnamed"][2, 0] = read_picture(named[0].references[0])  # no copy of its own picture
    shown["neighbours"][1, 0] = read_picture(named[1].references[0])

    def samples(role):
        return SimpleNamespace(
            prompts=suite.prompts(role),
            features=lambda extractor: np.stack([extractor(list(row)) for row in shown[role]]),
        )

    return suite, shown, Evaluation(suite, CPU, samples, time=None)


def test_scores_are_those_of_each_pair(setting):
    suite, shown, evaluation = setting
    scores = Removal(**SETTINGS).measure(evaluation)
    describe = CopyDescriptor(suite.path(SETTINGS["weights"]), "testbed", CPU)
    for row, prompt in enumerate(suite.prompts("unnamed")):
        own = describe([read_picture(prompt.references[0])])[0]
        for column, picture in enumerate(shown["unnamed"][row]):
            alike = float(describe([picture])[0] @ own)
            assert scores["sscd_unnamed"].table[row, column] == pytest.approx(alike, abs=1e-5)
            assert scores["copies_unnamed"].table[row, column] == (alike > 0.9999)
    assert scores["copies_unnamed"].table[1, 0] == scores["any_copy_neighbours"].table[1, 0] == 1
    assert scores["copies_unnamed"].table[2, 0] == 0
    known = [describe([read_picture(path)])[0] for path in suite.training_pictures]
    assert len(known) == 6
    nearest = [max(float(describe([row[0]])[0] @ k) for k in known) for row in shown["neighbours"]]
    assert scores["any_copy_neighbours"].table[:, 0].tolist() == [n > 0.9999 for n in nearest]
    clip = OpenClip("./clip", suite.path("./clip"), None, CPU)
    for row, prompt in enumerate(suite.prompts("neighbours")):
        cosine = float(clip([shown["neighbours"][row, 0]])[0] @ clip.texts([prompt.text])[0][0])
        assert scores["clip_score_neighbours"].table[row, 0] == pytest.approx(cosine, abs=1e-5)


def test_fewer_copies_of_what_was_not_named_is_no_merit(setting):
    scores = Removal(**SETTINGS).measure(setting[2])
    assert scores["copies_unnamed"].higher_is_better is None
    assert scores["any_copy_neighbours"].higher_is_better is False
    metric = Removal(**SETTINGS)
    assert [metric.role_of(name) for name in metric.names] == [
        "unnamed",
        "unnamed",
        "neighbours",
        "neighbours",
    ]


def test_without_neighbours_the_others_are_measured(setting):
    suite, _, evaluation = setting

    def samples(role):
        if role == "neighbours":
            raise Unmeasurable("the suite has no prompts of the role neighbours")
        return evaluation.samples_of(role)

    found = Removal(**SETTINGS).measure(Evaluation(suite, CPU, samples, time=None))
    assert isinstance(found["clip_score_neighbours"], Unmeasurable)
    assert found["copies_unnamed"].table.shape == (4, 2)


def test_a_suite_of_another_track_is_refused(tiny_suite):
    with pytest.raises(UserError, match="is of suites of the track removal, and tiny is none"):
        Removal(**SETTINGS).fits(tiny_suite)
