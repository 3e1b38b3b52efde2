"""The classifier of objects reads what it wrote, names what a text names, and refuses the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.base.errors import UserError
from bench.features import ObjectRecogniser
from bench.features.recogniser import ObjectNetwork, save_recogniser
from bench.testbed.sprites import concept_names

CPU = torch.device("cpu")
NAMES = ("apple", "green apple", "key")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = ObjectNetwork(3).eval()
    save_recogniser(network, NAMES, tmp_path / "objects.safetensors")
    return network, ObjectRecogniser(tmp_path / "objects.safetensors", CPU, batch_size=2)


def some_pictures(count):
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def test_the_logits_are_the_networks_one_picture_at_a_time(saved):
    network, recogniser = saved
    pictures = some_pictures(5)
    with torch.no_grad():
        slow = [
            network(torch.from_numpy(p / 127.5 - 1).float().permute(2, 0, 1)[None])[0].numpy()
            for p in pictures
        ]
    np.testing.assert_allclose(recogniser(pictures), slow, atol=1e-5)
    answers = [int(np.argmax(row)) for row in slow]
    assert recogniser.shows(pictures, answers).all()
    assert not recogniser.shows(pictures, [(answer + 1) % 3 for answer in answers]).any()
    np.testing.assert_allclose(np.linalg.norm(recogniser.looks(pictures), axis=1), 1, atol=1e-5)


def test_a_text_names_whole_words_and_the_longest_of_names_within_names(saved):
    _, recogniser = saved
    assert recogniser.names == NAMES
    assert recogniser.named("A Key with an apple") == (0, 2)
    assert recogniser.named("a green apple") == (1,)
    assert recogniser.named("monkey applesauce") == ()


def test_every_object_of_the_testbed_is_named_by_its_own_name_alone(tmp_path):
    names = concept_names()
    save_recogniser(ObjectNetwork(len(names)), names, tmp_path / "all.safetensors")
    recogniser = ObjectRecogniser(tmp_path / "all.safetensors", CPU)
    for number, name in enumerate(names):
        assert recogniser.named(f"a picture of {name}") == (number,)


@pytest.mark.parametrize(
    "metadata, weights",
    [
        (None, {"a": torch.zeros(1)}),
        ({"objects": "no JSON"}, {"a": torch.zeros(1)}),
        ({"objects": json.dumps([1, 2])}, {"a": torch.zeros(1)}),
        ({"objects": json.dumps(["a", "b"])}, {"a": torch.zeros(1)}),
    ],
)
def test_another_safetensors_file_is_refused_in_one_line(tmp_path, metadata, weights):
    save_file(weights, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(UserError, match="classifier of objects|list of names"):
        ObjectRecogniser(tmp_path / "other.safetensors", CPU)(some_pictures(1))


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UserError, match="no classifier of objects"):
        ObjectRecogniser(tmp_path / "broken.safetensors", CPU)(some_pictures(1))
