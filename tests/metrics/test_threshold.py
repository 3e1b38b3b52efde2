"""The threshold of a model, measured on clean generations against all training pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench import load_suite, read_picture
from bench.contracts.target import Target
from bench.features import CopyDescriptor
from conftest import bench
from metrics.sscd import Sscd

CPU = torch.device("cpu")


def test_one_clean_generation_in_a_thousand_is_above_it(tiny_suite, tiny_folder):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(6, 200, 96)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)

    class Generated:
        def features(self, descriptor):
            return vectors[:, : self.images]

    generated = Generated()

    def generate(prompts, images):
        assert [prompt.id for prompt in prompts] == [f"k{i}" for i in range(6)]
        generated.images = images
        return generated

    metric = Sscd(weights="./descriptor.safetensors", profile="testbed")
    found = metric.calibrate(Target(tiny_suite, CPU, "api", generate, None))
    describe = CopyDescriptor(tiny_folder / "descriptor.safetensors", "testbed", CPU)
    pictures = [tiny_folder / f"reference-{i}.png" for i in range(6)]
    training = describe([read_picture(path) for path in pictures])
    nearest = [
        max(float(v @ t) for t in training) for row in vectors[:, : generated.images] for v in row
    ]
    assert found["images"] == len(nearest) == 6 * 167
    assert sum(value > found["threshold"] + 5e-5 for value in nearest) <= 1
    assert found["threshold"] == pytest.approx(sorted(nearest)[-2], abs=1e-4)


def test_the_command_writes_it_beside_the_suite(tiny_folder, tmp_path):
    text = (tiny_folder / "tiny.toml").read_text()
    suite = tmp_path / "own.toml"
    # Of the thousand images that it asks for 64 at once.
    lines = [
        'name = "own"',
        f'extends = "{tiny_folder / "tiny.toml"}"',
        "[model]",
        "batch_size = 64",
    ]
    suite.write_text("\n".join(lines) + "\n")
    assert "[metrics.sscd]" in text
    done = bench("calibrate", "sscd", "--suite", str(suite), "--store", str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "own.sscd.json").read_text())
    assert -1 <= content["threshold"] <= 1 and content["images"] >= 1000
    assert load_suite(str(suite)).settings.metrics["sscd"]["threshold"] == 0.5
