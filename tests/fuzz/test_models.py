"""The files of a model: configurations, tokenizer, scheduler, weights; and of scorers."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rule import (
    DEEP,
    DIGITS,
    changed,
    damaged,
    header_and_data,
    refused_or_given,
    with_header,
    words,
)

from bench import UserError, load_suite
from bench.contracts.method import Method
from bench.diffusion.model import load_denoiser
from bench.running.sampling import sample
from bench.statistics import read_statistics
from conftest import CAPTIONS, SUITE, examples

CPU = torch.device("cpu")
SUITE_OF_MODEL = SUITE.replace('path = "pipeline"', 'path = "changed"').replace(
    "steps = 3", "steps = 2"
)


def one_image(suite):
    """Load the suite's model and make an image with it."""
    denoiser = load_denoiser(suite, CPU)
    try:
        return sample(denoiser, denoiser.request(CAPTIONS[:1], [1]), Method(), {})
    finally:
        denoiser.close()


@pytest.fixture(scope="module")
def suite(fuzz_folder):
    (fuzz_folder / "model.toml").write_text(SUITE_OF_MODEL)
    return load_suite(str(fuzz_folder / "model.toml"))


@pytest.fixture
def model(fuzz_folder):
    """A copy of the pipeline to change."""
    shutil.rmtree(fuzz_folder / "changed", ignore_errors=True)
    shutil.copytree(fuzz_folder / "pipeline", fuzz_folder / "changed")
    return fuzz_folder / "changed"


def test_the_model_as_it_is_gives_an_image(suite, model):
    assert one_image(suite).shape == (1, 4, 8, 8)


CONFIGS = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_configuration_may_be_absent_or_wrong(suite, model, name):
    file = model / name
    if not file.is_file():
        pytest.skip(f"the tiny pipeline has no {name}")
    original = file.read_bytes()
    config = json.loads(original)
    cases = [original[: len(original) // 2], b"", b"[" * DEEP, b'{"a": ' + b"9" * DIGITS + b"}"]
    cases += [json.dumps({k: v for k, v in config.items() if k != key}).encode() for key in config]
    for wrong in ([], "x"):
        cases.append(json.dumps(dict.fromkeys(config, wrong)).encode())
    for content in cases:
        file.write_bytes(content)
        refused_or_given(one_image, suite)
    file.unlink()
    refused_or_given(one_image, suite)


@examples(40)
@given(data=st.data())
def test_a_configuration_with_other_values(suite, fuzz_folder, data):
    name = data.draw(st.sampled_from(CONFIGS[:-1]))
    source = fuzz_folder / "pipeline" / name
    shutil.copytree(fuzz_folder / "pipeline", fuzz_folder / "changed", dirs_exist_ok=True)
    if source.is_file():
        config = data.draw(changed(json.loads(source.read_text())))
        (fuzz_folder / "changed" / name).write_text(json.dumps(config))
        refused_or_given(one_image, suite)


@examples(40)
@given(data=st.data())
def test_a_file_of_weights(suite, fuzz_folder, data):
    part = data.draw(st.sampled_from(["unet", "vae", "text_encoder"]))
    source = next((fuzz_folder / "pipeline" / part).glob("*.safetensors"))
    shutil.copytree(fuzz_folder / "pipeline", fuzz_folder / "changed", dirs_exist_ok=True)
    if data.draw(st.booleans()):
        header, rest = header_and_data(source)
        content = with_header(data.draw(changed(header)), rest)
    else:
        content = data.draw(damaged(source.read_bytes()[:4000]))
    (fuzz_folder / "changed" / part / source.name).write_bytes(content)
    refused_or_given(one_image, suite)


SCHEDULERS = ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler"]
SCHEDULERS += ["DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]


@pytest.mark.parametrize("steps", [1, 2, 1000, 1001, 100_000])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_any_number_of_steps_is_taken_or_refused(suite, model, scheduler, steps):
    settings = suite.settings.model.model_copy(update={"steps": steps, "scheduler": scheduler})
    other = replace(suite, settings=suite.settings.model_copy(update={"model": settings}))
    denoiser = refused_or_given(load_denoiser, other, CPU)
    if denoiser:
        denoiser.start(denoiser.initial_latents([1]))
        denoiser.close()


@examples(20)
@given(words)
def test_a_scheduler_by_any_name(suite, fuzz_folder, name):
    shutil.copytree(fuzz_folder / "pipeline", fuzz_folder / "changed", dirs_exist_ok=True)
    settings = suite.settings.model.model_copy(update={"scheduler": name})
    refused_or_given(
        one_image, replace(suite, settings=suite.settings.model_copy(update={"model": settings}))
    )


def stored(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


STATISTICS = [
    stored(mu=np.zeros(3), sigma=np.eye(3), n=5),
    stored(mu=np.zeros(3), sigma=np.eye(2), n=5),
    stored(mu=np.zeros(3), sigma=np.eye(3), n=np.array([1, 2])),
    stored(mu=np.array(["a"]), sigma=np.eye(1), n=5),
    stored(mu=np.array([None], dtype=object), sigma=np.eye(1), n=5),
    stored(mu=np.zeros(3)),
    stored(mu=np.zeros(0), sigma=np.zeros((0, 0)), n=-1),
    stored(mu=np.full(2, np.nan), sigma=np.eye(2), n=5),
    stored(mu=np.zeros(2), sigma=np.eye(2), n=np.nan),
    stored(mu=np.zeros(2) * 1j, sigma=np.eye(2), n=2),
]


@examples(60)
@given(data=st.data())
def test_statistics_of_real_pictures(fuzz_folder, data):
    content = data.draw(st.sampled_from(STATISTICS))
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    (fuzz_folder / "statistics.npz").write_bytes(content)
    refused_or_given(read_statistics, fuzz_folder / "statistics.npz", 3)
    refused_or_given(read_statistics, fuzz_folder / "statistics.npz")


def test_all_statistics_as_they_are(fuzz_folder):
    for content in STATISTICS:
        (fuzz_folder / "statistics.npz").write_bytes(content)
        refused_or_given(read_statistics, fuzz_folder / "statistics.npz")


def of_size(model, size):
    config = json.loads((model / "unet/config.json").read_text())
    config.pop("sample_size")
    (model / "unet/config.json").write_text(
        json.dumps(config | ({} if size is None else {"sample_size": size}))
    )


@pytest.mark.parametrize("size", [8, [8, 8], None])
def test_a_size_of_height_and_width_or_none_is_the_same_model(suite, model, size):
    expected = one_image(suite)
    of_size(model, size)
    assert torch.equal(one_image(suite), expected)


@pytest.mark.parametrize(
    ("size", "gives"), [(16, "64"), ([8, 16], "32 x 64"), ([8], r"sample_size \[8\]")]
)
def test_a_model_of_another_size_is_refused(suite, model, size, gives):
    of_size(model, size)
    with pytest.raises(UserError, match=f"says 32 pixels and its model gives {gives}$"):
        one_image(suite)


def test_a_tokenizer_without_a_limit_cuts_prompts_to_what_the_text_encoder_takes(suite, model):
    expected = one_image(suite)
    file = model / "tokenizer/tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["model_max_length"]
    file.write_text(json.dumps(config))
    assert torch.equal(one_image(suite), expected)


def test_infinite_guidance_is_refused(fuzz_folder):
    (fuzz_folder / "guidance.toml").write_text(
        SUITE.replace("guidance_scale = 4.0", "guidance_scale = inf")
    )
    with pytest.raises(UserError, match="guidance_scale"):
        load_suite(str(fuzz_folder / "guidance.toml"))
