"""Weights between a model that was fine-tuned as a whole and its base."""

import json
import shutil

import pytest
import torch

from bench.base.errors import UserError
from bench.diffusion.between import blend, learned_parts, refuse_other_shapes, same_weights
from bench.diffusion.families import parts_of
from bench.diffusion.model import load_pipeline
from bench.suite.load import load_suite
from bench.suite.schema import protocol
from bench.testbed.tiny import build_tiny_base, build_tiny_pipeline, build_tiny_xl_pipeline

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _the_tiny_suite_may_be_read(monkeypatch, tiny_folder):
    monkeypatch.setenv("BENCH_ALLOW", str(tiny_folder))


def weights(pipe):
    return {
        f"{part}.{name}": value.detach().clone()
        for part, network in parts_of(pipe).items()
        for name, value in network.named_parameters()
    }


def bits(value):
    """Zeros of both signs differ in them."""
    whole = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
    return value.contiguous().view(whole[value.dtype])


def identical(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(bits(value), bits(other[name])) for name, value in one.items()
    )


def suite_of(folder, tiny_folder, weight=None, dtype="float32", name="mine", base="base"):
    lines = [f'extends = "{tiny_folder / "tiny.toml"}"', f'name = "{name}"', "[model]"]
    lines += [f'dtype = "{dtype}"', f'base = "{tiny_folder / base}"']
    lines += [] if weight is None else [f"weight = {weight}"]
    (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
    return load_suite(str(folder / f"{name}.toml"))


@pytest.mark.parametrize("weight", [-0.5, 0.3, 0.8, 1.2])
def test_every_weight_is_the_formula_in_float64(weight):
    model, base = build_tiny_pipeline(1), build_tiny_base()
    first, second = weights(model), weights(base)
    blend(model, base, weight)
    assert identical(weights(base), second)
    moved = weights(model)
    for name, value in moved.items():
        if name.startswith("vae"):
            assert torch.equal(value, first[name])
            continue
        start, end = second[name].double(), first[name].double()
        expected = start + weight * (end - start)
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_ends_are_base_and_model_bit_for_bit():
    """Also where a weight is a negative zero, which a sum with zero would turn."""
    for weight, end in ((0.0, "base"), (1.0, "model")):
        pipes = {"model": build_tiny_pipeline(1), "base": build_tiny_base()}
        for pipe in pipes.values():
            pipe.unet.conv_in.bias.data[0] = -0.0
        before = {name: weights(pipe) for name, pipe in pipes.items()}
        blend(pipes["model"], pipes["base"], weight)
        after = weights(pipes["model"])
        for name, value in after.items():
            expected = before["model" if name.startswith("vae") else end][name]
            assert torch.equal(bits(value), bits(expected)), name


def test_both_text_encoders_of_xl_move():
    model, base = build_tiny_xl_pipeline(0), build_tiny_xl_pipeline(1)
    assert list(learned_parts(model)) == ["unet", "text_encoder", "text_encoder_2"]
    blend(model, base, 0)
    for part in learned_parts(model):
        assert same_weights(getattr(model, part), getattr(base, part))
    assert not same_weights(model.vae, base.vae)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_suite_at_its_ends_is_the_base_and_the_model_bit_for_bit(tmp_path, tiny_folder, dtype):
    yours = suite_of(tmp_path, tiny_folder, dtype=dtype)
    whole = suite_of(tmp_path, tiny_folder, 1.0, dtype, "whole")
    none = suite_of(tmp_path, tiny_folder, 0.0, dtype, "none")
    assert whole.generation == yours.generation
    model, base = weights(load_pipeline(yours, CPU)), weights(load_pipeline(yours.base, CPU))
    assert identical(weights(load_pipeline(whole, CPU)), model)
    found = weights(load_pipeline(none, CPU))
    own = {name: value for name, value in model.items() if name.startswith("vae")}
    assert identical(found, base | own)


def test_half_precision_is_cast_once(tmp_path, tiny_folder):
    """From both models in float32: a cast of each before would lose small changes."""
    exact = weights(load_pipeline(suite_of(tmp_path, tiny_folder, 0.3), CPU))
    half = weights(load_pipeline(suite_of(tmp_path, tiny_folder, 0.3, "float16", "half"), CPU))
    for name, value in half.items():
        assert value.dtype == torch.float16
        assert torch.equal(value, exact[name].half())


def test_a_weight_is_part_of_who_a_suite_is_only_where_it_is_not_one(tmp_path, tiny_folder):
    yours, one = (suite_of(tmp_path, tiny_folder, weight) for weight in (None, 1.0))
    half = suite_of(tmp_path, tiny_folder, 0.5, name="half")
    assert "weight" not in protocol(yours.settings)["model"]
    assert yours.fingerprint == one.fingerprint
    assert yours.generation == one.generation
    assert half.generation["weight"] == 0.5
    assert half.generation["base_sha256"] == half.base.generation["model_sha256"]
    other = suite_of(tmp_path, tiny_folder, 0.5, name="other", base="pipeline")
    assert other.generation != half.generation
    # what it was fine-tuned from is the same, whatever is kept of the fine-tuning
    assert half.base.generation == yours.base.generation


def refused(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_has_nothing_in_between_is_one_line(tmp_path, tiny_folder):
    (tmp_path / "bare.toml").write_text(
        f'extends = "{tiny_folder / "tiny.toml"}"\nname = "bare"\n[model]\nweight = 0.5\n'
    )
    assert "weight needs base" in refused(lambda: load_suite(str(tmp_path / "bare.toml")))
    (tmp_path / "both.toml").write_text(
        f'extends = "{tiny_folder / "tiny.toml"}"\nname = "both"\n[model]\nweight = 0.5\n'
        '[[model.loras]]\nfile = "x.safetensors"\n'
    )
    assert "each file has its own" in refused(lambda: load_suite(str(tmp_path / "both.toml")))
    velocity = build_tiny_pipeline(0, "v_prediction")
    said = refused(lambda: blend(build_tiny_pipeline(), velocity, 0.5))
    assert "predicts epsilon and the base v_prediction" in said
    said = refused(
        lambda: refuse_other_shapes(build_tiny_pipeline(), build_tiny_xl_pipeline(), "b")
    )
    assert said.startswith("b is no base of the suite's model: unet.")
    shutil.copytree(tiny_folder / "base", tmp_path / "base")
    file = tmp_path / "base/scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.02}))
    (tmp_path / "noisy.toml").write_text(
        f'extends = "{tiny_folder / "tiny.toml"}"\nname = "noisy"\n'
        '[model]\nweight = 0.5\nbase = "base"\n'
    )
    noisy = load_suite(str(tmp_path / "noisy.toml"))
    assert "their noise schedules differ" in refused(lambda: load_pipeline(noisy, CPU))
