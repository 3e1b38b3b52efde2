"""Copies by what the model does without a mitigation, against one picture at a time."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bench import Evaluation, Unmeasurable, UserError, load_suite, read_picture
from bench.features import CopyDescriptor
from bench.running.experiment import Experiment
from conftest import bench
from metrics.copies import Copies, read_labels

CPU = torch.device("cpu")
SETTINGS = {
    "weights": "./descriptor.safetensors",
    "profile": "testbed",
    "threshold": 0.5,
    "labels": "./labels.json",
}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "suite")
    return tmp_path / "suite"


def relabelled(folder, **changes):
    path = folder / "labels.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def an_evaluation(folder):
    suite = load_suite(str(folder / "tiny.toml"))
    prompts = suite.prompts("memorized")
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (len(prompts), 3, 32, 32, 3), dtype=np.uint8)
    pictures[0, 1] = read_picture(prompts[0].references[0])
    samples = SimpleNamespace(
        prompts=prompts,
        images=3,
        features=lambda extractor: np.stack([extractor(list(row)) for row in pictures]),
        __len__=lambda self: len(prompts),
    )
    return pictures, Evaluation(suite, CPU, lambda role: samples, time=None)


def test_every_stratum_is_scored_on_its_own_prompts(folder):
    pictures, evaluation = an_evaluation(folder)
    describe = CopyDescriptor(folder / "descriptor.safetensors", "testbed", CPU)
    prompts = {prompt.id: row for row, prompt in enumerate(evaluation.suite.prompts("memorized"))}
    threshold = 0.999
    relabelled(folder, threshold=threshold)

    def slow(id):
        (own,) = evaluation.suite.prompts("memorized")[prompts[id]].references
        training = describe([read_picture(own)])[0]
        return [float(describe([picture])[0] @ training) for picture in pictures[prompts[id]]]

    scores = Copies(**SETTINGS | {"threshold": threshold}).measure(evaluation)
    strata = {"copies": "p2 p3", "sscd_copied": "p2 p3", "copies_sometimes": "p4"}
    for name, ids in (strata | {"copies_never": "p5"}).items():
        table = np.array([slow(id) for id in ids.split()])
        expected = table if name == "sscd_copied" else (table > threshold).astype(float)
        assert [prompt.id for prompt in scores[name].prompts] == ids.split()
        np.testing.assert_allclose(scores[name].table, expected, atol=1e-5)
    assert scores["copies"].table[0, 1] == 1  # the training picture itself


def test_an_empty_stratum_has_no_number(folder):
    relabelled(folder, share_of_copies=dict.fromkeys(("p2", "p3", "p4", "p5"), 0.75))
    scores = Copies(**SETTINGS).measure(an_evaluation(folder)[1])
    assert len(scores["copies"].prompts) == 4
    assert "no prompts that are never copied" in str(scores["copies_never"])


@pytest.mark.parametrize("change", [{"threshold": 0.6}, {"descriptor": "sscd-other"}])
def test_labels_of_another_rule_give_no_number(folder, change):
    relabelled(folder, **change)
    with pytest.raises(Unmeasurable, match="label the prompts again"):
        Copies(**SETTINGS).measure(an_evaluation(folder)[1])


def test_prompts_without_a_label_are_named(folder):
    relabelled(folder, share_of_copies={"p2": 1.0, "p3": 1.0, "p5": 0.0})
    with pytest.raises(UserError, match="no label for 1 prompts of the suite, the first 'p4'"):
        Copies(**SETTINGS).measure(an_evaluation(folder)[1])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"images_per_prompt": 0}', '{"share_of_copies": {"p2": 2}}']
)
def test_a_damaged_labels_file_is_one_line(folder, text):
    (folder / "labels.json").write_text(text)
    with pytest.raises(UserError, match="labels") as error:
        Copies(**SETTINGS).measure(an_evaluation(folder)[1])
    assert "\n" not in str(error.value)


def test_labels_are_measured_on_images_that_no_score_uses(folder, tmp_path):
    text = (folder / "tiny.toml").read_text() + "\n[metrics.copies]\n"
    text += "".join(f"{name} = {json.dumps(value)}\n" for name, value in SETTINGS.items())
    (folder / "tiny.toml").write_text(text)
    store = tmp_path / "store"
    done = bench("calibrate", "copies", "--suite", str(folder / "tiny.toml"), "--store", str(store))
    assert done.returncode == 0, done.stderr
    labels = read_labels(folder / "labels.json")
    suite = load_suite(str(folder / "tiny.toml"))
    prompts = [*suite.prompts("memorized"), *suite.prompts("fit")]
    assert labels.share_of_copies.keys() == {prompt.id for prompt in prompts}
    assert labels.images_per_prompt == 16 and labels.threshold == 0.5
    assert all(share * 16 == int(share * 16) for share in labels.share_of_copies.values())
    scored = {suite.image_seed(prompt.text, i) for prompt in prompts for i in range(64)}
    made = {int(seed) for seed in seeds_in(store)}
    assert made and not made & scored


def seeds_in(store):
    """The seeds of all images that a store holds."""
    return [
        seed
        for shard in store.rglob("*.parquet")
        for seed in pq.read_table(shard, columns=["seed"])["seed"].to_pylist()
    ]


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda labels: labels.unlink(), "not there yet; make it: bench calibrate copies"),
        (lambda labels: labels.write_text('{"images'), "make them again: bench calibrate copies"),
        (lambda labels: relabelled(labels.parent, share_of_copies={}), "no label for 4 prompts"),
    ],
)
def test_labels_are_looked_at_before_any_picture_is_made(folder, spoil, says):
    text = (folder / "tiny.toml").read_text() + "\n[metrics.copies]\n"
    text += "".join(f"{name} = {json.dumps(value)}\n" for name, value in SETTINGS.items())
    (folder / "tiny.toml").write_text(text)
    Experiment.resolve(load_suite(str(folder / "tiny.toml")), "none", {})
    spoil(folder / "labels.json")
    with pytest.raises(UserError, match=says):
        Experiment.resolve(load_suite(str(folder / "tiny.toml")), "none", {})


def test_an_unknown_name_is_answered_with_the_metrics_of_the_suite_too(folder):
    done = bench("calibrate", "sscdd", "--suite", str(folder / "tiny.toml"))
    assert done.returncode == 2 and "did you mean 'sscd'" in done.stderr
