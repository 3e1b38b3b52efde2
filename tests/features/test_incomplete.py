"""Networks and statistics that a number depends on are whole, or refused in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from bench import trust
from bench.base.errors import UserError
from bench.diffusion.model import load_pipeline
from bench.features import PROFILES, CleanFeatures, CopyDescriptor, OpenClip
from bench.statistics.frechet import read_statistics
from bench.suite.load import load_suite

CPU = torch.device("cpu")
PICTURES = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))


class Constant(torch.nn.Module):
    """The same answer for every picture."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.layers = _Layers(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :8] * 0 + self.value


class _Layers(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :8] * 0 + self.value


class Features(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.layers = _Layers(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def saved(module, path):
    torch.jit.trace(module.eval(), torch.rand(2, 3, 32, 32)).save(str(path))
    trust([path])
    return path


def test_a_descriptor_that_gives_zeros_is_refused(tmp_path):
    path = saved(Constant(0.0), tmp_path / "zeros.pt")
    with pytest.raises(UserError, match="nothing but zeros"):
        CopyDescriptor(path, "testbed", CPU)(PICTURES)
    CopyDescriptor(saved(Constant(1.0), tmp_path / "ones.pt"), "testbed", CPU)(PICTURES)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_features_of_nothing_are_refused(tmp_path, value):
    path = saved(Features(value), tmp_path / "features.pt")
    with pytest.raises(UserError, match="NaN, infinity or nothing but zeros"):
        CleanFeatures(path, 32, CPU)(PICTURES)


def test_an_open_clip_folder_without_weights_is_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder / "clip", tmp_path / "clip")
    (tmp_path / "clip/open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        OpenClip("clip", tmp_path / "clip", None, CPU)(PICTURES)


@pytest.mark.parametrize(
    "sigma, says",
    [
        (np.array([[1.0, 0.9], [0.1, 1.0]]), "not symmetric"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "negative variance"),
    ],
)
def test_a_covariance_that_is_none_is_refused(tmp_path, sigma, says):
    np.savez(tmp_path / "s.npz", mu=np.zeros(2), sigma=sigma, n=10)
    with pytest.raises(UserError, match=says):
        read_statistics(tmp_path / "s.npz")


def test_statistics_of_few_pictures_may_lack_directions(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 20))
    np.savez(tmp_path / "s.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False), n=5)
    assert read_statistics(tmp_path / "s.npz").n == 5


def test_a_pipeline_whose_tokenizer_lost_its_files_is_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "suite")
    file = tmp_path / "suite/pipeline/text_encoder/config.json"
    config = json.loads(file.read_text())
    vocabulary = tmp_path / "suite/pipeline/tokenizer"
    for lost in ("tokenizer.json", "vocab.json", "merges.txt"):
        (vocabulary / lost).unlink(missing_ok=True)
    with pytest.raises(UserError) as error:
        load_pipeline(load_suite(str(tmp_path / "suite/tiny.toml")), CPU)
    assert "\n" not in str(error.value) and config["vocab_size"] > 2


def test_pictures_of_unlike_sizes_are_described_as_each_alone(tmp_path):
    """A profile that keeps sizes leaves training pictures as they are."""
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    weights = saved(network, tmp_path / "d.pt")
    keeps = next(name for name, p in PROFILES.items() if not (p.square or p.short or p.crop))
    describe = CopyDescriptor(weights, keeps, CPU, batch_size=2)
    random = np.random.default_rng(1)
    sides = [(32, 32), (32, 32), (32, 32), (48, 32), (32, 48), (32, 32)]
    pictures = [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
    alone = np.concatenate([describe([picture]) for picture in pictures])
    np.testing.assert_allclose(describe(pictures), alone, atol=1e-6)
