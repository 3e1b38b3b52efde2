"""A rescaled LoRA file, read by the ordinary reader, changes the model as the original does at that
weight; every kind, wherever its scale is stated.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_lora import CONV, KINDS, LINEAR, NORM, TEXT, drawn, kohya, lora, module, weights, written

from bench.base.errors import UserError
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.diffusion.lora.rescale import is_bound, rescaled
from bench.diffusion.lora.write import write_file
from conftest import bench, build_tiny_pipeline


def rescaled_file(file, folder, strength, strip=False):
    write_file(folder / "rescaled.safetensors", *rescaled(file, strength, strip))
    return read_lora(folder / "rescaled.safetensors")


def same_at(folder, tensors, strength, header=None, tolerance=1e-6):
    """Both ways to the same weights; the file that was written."""
    file = written(folder, tensors, header=header)
    other = rescaled_file(file, folder, strength)
    one, two = build_tiny_pipeline(), build_tiny_pipeline()
    merge(one, [(file, strength)])
    merge(two, [(other, Strength())])
    expected, before = weights(one), weights(build_tiny_pipeline())
    for name, value in weights(two).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance)
    assert any(not torch.equal(value, before[name]) for name, value in expected.items())
    return file, other


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("alpha", [None, 0.0, 3.0])
@pytest.mark.parametrize("weight", [0.7, -1.3])
def test_every_kind_at_any_weight(tmp_path, kind, alpha, weight):
    tensors, _, path, _ = kind()
    given = {f"{kohya(path)}.{name}": value for name, value in tensors.items()}
    if alpha is not None:
        given[f"{kohya(path)}.alpha"] = torch.tensor(alpha)
    file, other = same_at(tmp_path, given, Strength(weight, weight))
    if alpha:  # then no factor is touched
        kept = [name for name in given if not name.endswith(".alpha")]
        assert all(torch.equal(file.tensors[name], other.tensors[name]) for name in kept)


def test_two_whole_factors_have_no_scale_that_an_alpha_could_change(tmp_path):
    name = kohya(LINEAR)
    tensors = {f"{name}.lokr_w1": drawn(4, 4), f"{name}.lokr_w2": drawn(4, 4, seed=1)}
    same_at(tmp_path, tensors | {f"{name}.alpha": torch.tensor(9.0)}, Strength(0.3, 0.3))


def test_full_changes_norms_and_biases(tmp_path):
    size = tuple(module(NORM).weight.shape)
    tensors = {
        f"{kohya(CONV)}.diff": drawn(16, 16, 3, 3),
        f"{kohya(CONV)}.diff_b": drawn(16, seed=1),
        f"{kohya(NORM)}.w_norm": drawn(*size, seed=2),
        f"{kohya(NORM)}.b_norm": drawn(*size, seed=3),
    }
    same_at(tmp_path, tensors, Strength(0.3, 0.3))


@pytest.mark.parametrize(
    "said",
    [
        {"unet.r": 2, "unet.lora_alpha": 6},
        {"unet.r": 2, "unet.lora_alpha": 6, "unet.use_rslora": True},
        {"unet.r": 8, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}},
        {"unet.r": 8, "unet.rank_pattern": {"attn1.to_q": 2}},
        {"text_encoder.r": 8, "text_encoder.lora_alpha": 4},
    ],
)
def test_what_peft_states_in_the_header_is_changed_there(tmp_path, said):
    _, given = of_peft()
    header = {"lora_adapter_metadata": json.dumps(said)}
    file, other = same_at(tmp_path, given, Strength(0.7, 0.7), header)
    if "unet.lora_alpha" in said:
        assert all(torch.equal(file.tensors[name], other.tensors[name]) for name in given)
        assert file.digest != other.digest  # the same tensors act otherwise
        assert other.metadata["unet.lora_alpha"] == pytest.approx(0.7 * said["unet.lora_alpha"])


def of_peft():
    """A module's path and its LoRA in peft's spelling."""
    tensors, _, path, _ = lora()
    return path, {
        f"unet.{path}.lora_A.weight": tensors["lora_down.weight"],
        f"unet.{path}.lora_B.weight": tensors["lora_up.weight"],
    }


def both_parts():
    tensors, _, path, _ = lora()
    found = {f"{kohya(path)}.{name}": value for name, value in tensors.items()}
    text = kohya(TEXT, "lora_te_text_model_")
    found |= {f"{text}.lora_up.weight": drawn(32, 2), f"{text}.lora_down.weight": drawn(2, 32)}
    return found | {f"{text}.alpha": torch.tensor(1.0), f"{kohya(path)}.alpha": torch.tensor(2.0)}


@pytest.mark.parametrize(
    "strength", [Strength(0.5, 0.25), Strength(1, 0), Strength(0, 1), Strength(0.5, 0)]
)
def test_parts_have_weights_of_their_own_and_one_without_weight_is_left_out(tmp_path, strength):
    _, other = same_at(tmp_path, both_parts(), strength)
    assert any("lora_te" in name for name in other.tensors) == bool(strength.text)
    assert any("lora_unet" in name for name in other.tensors) == bool(strength.unet)


def test_at_weight_one_every_bit_stays_and_the_header_with_it(tmp_path):
    header = {
        "ss_network_alpha": "2.0",
        "ss_tag_frequency": '{"10_me": {"red hair": 3}}',
        "sshs_model_hash": "of the old tensors",
        "modelspec.author": "me",
    }
    file = written(tmp_path, both_parts(), header=header)
    other = rescaled_file(file, tmp_path, Strength())
    assert other.digest == file.digest
    assert other.header == {
        "format": "pt",
        "ss_network_alpha": "2",
        "ss_tag_frequency": header["ss_tag_frequency"],
        "modelspec.author": "me",
    }
    assert rescaled_file(file, tmp_path, Strength(0.5, 0.5)).header["ss_network_alpha"] == "1"
    # one number cannot say two weights
    for two in (Strength(0.5, 1), Strength(1, 0.5)):
        assert rescaled_file(file, tmp_path, two).header["ss_network_alpha"] == "Dynamic"
    # of a file with one part left it can
    alone = rescaled_file(file, tmp_path, Strength(0.5, 0))
    assert alone.header["ss_network_alpha"] == "1"
    again = rescaled_file(alone, tmp_path, Strength(0.5, 3))
    assert again.header["ss_network_alpha"] == "0.5"


def test_a_stripped_file_tells_nothing_of_its_training_and_acts_as_before(tmp_path):
    path, given = of_peft()
    needed = {
        "unet.r": 2,
        "unet.lora_alpha": 6,
        "unet.rank_pattern": {"attn1.to_k": 4},
        "unet.alpha_pattern": {"attn1.to_k": 4},
        "unet.use_rslora": True,
        "unet.use_dora": False,
        "unet.target_modules": [path],
        "text_encoder.r": 4,
    }
    told = {
        "unet.base_model_name_or_path": "/home/alice/models/mine",
        "text_encoder.revision": "alice",
        "r": 3,
        "unet.lora_alpha.by": "alice",
    }
    said = json.dumps(told | needed)
    header = {"lora_adapter_metadata": said, "ss_dataset_dirs": "{}", "modelspec.author": "me"}
    file = written(tmp_path, given, header=header)
    for strength in (Strength(), Strength(0.5, 0.5)):
        other = rescaled_file(file, tmp_path, strength, strip=True)
        assert set(other.header) == {"format", "lora_adapter_metadata"}
        assert other.metadata.keys() == needed.keys()
        assert b"alice" not in other.path.read_bytes()
    other = rescaled_file(file, tmp_path, Strength(), strip=True)
    assert (other.digest, other.metadata) == (file.digest, needed)
    full = rescaled_file(file, tmp_path, Strength())
    assert (full.digest, full.metadata) == (file.digest, told | needed)


def test_patterns_keep_their_order_because_the_first_that_matches_counts(tmp_path):
    _, given = of_peft()
    one, two = {"attn1.to_q": 2, "to_q": 5}, {"to_q": 5, "attn1.to_q": 2}
    digests = set()
    for patterns in (one, two):
        said = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": patterns}
        header = {"lora_adapter_metadata": json.dumps(said)}
        file, _ = same_at(tmp_path, given, Strength(0.7, 0.7), header)
        digests.add(file.digest)
    assert len(digests) == 2


def test_diffusers_loads_a_stripped_file_of_peft_with_the_same_change(tmp_path):
    path, given = of_peft()
    said = {"unet.r": 2, "unet.lora_alpha": 6, "unet.target_modules": [path]}
    told = {"unet.base_model_name_or_path": "/home/alice/mine"}
    header = {"lora_adapter_metadata": json.dumps(said | told)}
    file = written(tmp_path, given, header=header)
    stripped = rescaled_file(file, tmp_path, Strength(0.5, 0.5), strip=True)
    pipe, ours = build_tiny_pipeline(), build_tiny_pipeline()
    pipe.load_lora_weights(str(stripped.path))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    merge(ours, [(file, Strength(0.5, 0.5))])
    found = pipe.unet.get_submodule(path).weight
    torch.testing.assert_close(found, ours.unet.get_submodule(path).weight, rtol=0, atol=1e-6)
    assert not torch.equal(found, module(path).weight)


def test_half_precision_stays_where_it_holds_the_product(tmp_path):
    tensors, _, path, _ = lora()
    given = {f"{kohya(path)}.{name}": value.half() for name, value in tensors.items()}
    file = written(tmp_path, given)
    exact, other = (rescaled(file, Strength(w, w))[0] for w in (0.5, 0.7))
    up = f"{kohya(path)}.lora_up.weight"
    assert (exact[up].dtype, other[up].dtype) == (torch.float16, torch.float32)


def test_a_dora_is_refused_and_so_is_a_file_of_which_nothing_is_left(tmp_path):
    tensors, _, path, _ = lora()
    given = {f"{kohya(path)}.{name}": value for name, value in tensors.items()}
    plain = written(tmp_path, given)
    assert not is_bound(plain.tensors, Strength(0.5, 0.5))
    with pytest.raises(UserError, match="nothing of .* is left"):
        rescaled(plain, Strength(0, 1))
    dora = written(tmp_path, given | {f"{kohya(path)}.dora_scale": drawn(1, 16)})
    assert is_bound(dora.tensors, Strength(0.5, 1))
    assert not is_bound(dora.tensors, Strength(1, 0.5))
    with pytest.raises(UserError, match="is a DoRA") as error:
        rescaled(dora, Strength(0.5, 0.5))
    assert "\n" not in str(error.value)
    assert rescaled(dora, Strength())[0].keys() == dora.tensors.keys()


def test_the_command_writes_a_file_that_acts_at_one_as_the_other_at_the_weight(tmp_path):
    file, out = tmp_path / "style.safetensors", tmp_path / "softer.safetensors"
    save_file(both_parts(), file, metadata={"ss_output_name": "style"})
    words = ["lora", "scale", file, "0.7", "--text-weight", "0.2", "--out", out]
    done = bench(*words, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["sha256"] == read_lora(out).digest
    one, two = build_tiny_pipeline(), build_tiny_pipeline()
    merge(one, [(read_lora(file), Strength(0.7, 0.2))])
    merge(two, [(read_lora(out), Strength())])
    expected = weights(one)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    again = bench(*words)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert bench(*words, "--force", "--strip-header").returncode == 0
    with safe_open(out, framework="pt") as written_file:
        assert set(written_file.metadata()) == {"format"}
    for command in ("scale", "filter"):
        # refused before the file, which is none, is read
        words = ["lora", command, tmp_path / "no.safetensors", *(["0.7"] * (command == "scale"))]
        other = bench(*words, "--out", tmp_path / "x.pt")
        assert other.returncode == 2
        assert "has to end in .safetensors" in other.stderr
        assert len(other.stderr.strip().splitlines()) == 1
    itself = bench("lora", "scale", file, "0.7", "--out", file, "--force")
    assert itself.returncode == 2
    assert "is the file that is read" in itself.stderr
