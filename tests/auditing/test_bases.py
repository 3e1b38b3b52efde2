"""A LoRA's header against the model at hand: what differs is one line, and what agrees is none."""

import hashlib
import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from bench.auditing.bases import base_notes
from bench.auditing.header import read_training_header
from bench.testbed.subject import SHIPPED
from conftest import bench, build_tiny_pipeline
from one_file import ldm_state


def pipe(width, predicts="epsilon", xl=False):
    return SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(cross_attention_dim=width)),
        scheduler=SimpleNamespace(config={"prediction_type": predicts}),
        text_encoder_2="there" if xl else None,
    )


MODELS = {
    "1": pipe(768),
    "2": pipe(1024),
    "2 v": pipe(1024, "v_prediction"),
    "xl": pipe(2048, xl=True),
    "tiny": pipe(32),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "v1.safetensors"
    path.write_bytes(bytes(range(256)) * 5000)  # more than the first MiB
    return path


def notes(model, path, **header):
    said = read_training_header({f"ss_{name}": text for name, text in header.items()})
    found = list(base_notes("style.safetensors", said, MODELS[model], path))
    assert not any("\n" in line for line in found)
    return found


@pytest.mark.parametrize(
    ("model", "header"),
    [
        ("1", {"base_model_version": "sd_v1", "v2": "False"}),
        ("2", {"base_model_version": "sd_v2", "v2": "True"}),
        ("2 v", {"base_model_version": "sd_v2_v"}),
        ("2 v", {"v2": "True"}),
        ("xl", {"base_model_version": "sdxl_base_v1-0", "v2": "False"}),
        ("tiny", {"base_model_version": "sd_v1"}),  # none of the published models
        ("1", {"base_model_version": "testbed"}),
        ("1", {}),
    ],
)
def test_what_agrees_or_is_not_said_is_no_note(file, model, header):
    assert notes(model, file, **header) == []


@pytest.mark.parametrize(
    ("model", "header", "says"),
    [
        ("1", {"base_model_version": "sd_v2"}, "trained on SD 2, .*and the model here is SD 1"),
        ("2", {"base_model_version": "sdxl_base_v1-0"}, "trained on SD XL, .* here is SD 2"),
        ("xl", {"base_model_version": "sd_v1"}, "trained on SD 1, .* here is SD XL"),
        ("1", {"v2": "True"}, "trained on SD 2, .*version 2.* here is SD 1"),
        ("2", {"base_model_version": "sd_v2_v"}, "predicts v, .* predicts epsilon"),
        ("2 v", {"base_model_version": "sd_v2"}, "predicts epsilon, .* predicts v"),
    ],
)
def test_another_kind_of_base_is_one_line(file, model, header, says):
    (line,) = notes(model, file, **header)
    assert re.search(says, line)


def test_digests_of_the_file_are_compared_the_whole_one_before_the_old_one(file):
    content = file.read_bytes()
    whole = hashlib.sha256(content).hexdigest()
    old = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    other = {"new_sd_model_hash": "a" * 64, "sd_model_name": "other.safetensors"}
    assert notes("1", file, new_sd_model_hash=whole.upper()) == []
    assert notes("1", file, sd_model_hash=old) == []
    assert notes("1", file, new_sd_model_hash=whole, sd_model_hash="b" * 8) == []
    (line,) = notes("1", file, **other, sd_model_hash=old)
    assert "another file than v1.safetensors" in line
    assert "aaaaaaaaaaaa (other.safetensors) and not" in line
    (line,) = notes("1", file, sd_model_hash="b" * 8)
    assert f"bbbbbbbb and not {old}" in line
    # kohya writes words where there was no file to read
    assert notes("1", file, sd_model_hash="NOFILE", new_sd_model_hash="IsADirectory") == []


def test_a_folder_has_no_digest_and_that_is_said_where_the_file_names_one(tmp_path):
    assert notes("1", tmp_path, base_model_version="sd_v1") == []
    (line,) = notes("1", tmp_path, new_sd_model_hash="a" * 64)
    assert "only the kind of model was compared" in line


def test_the_audit_says_it_on_the_terminal_before_anything_is_made_and_in_its_json(tmp_path):
    pipe = build_tiny_pipeline()
    pipe.save_pretrained(tmp_path / "config")
    save_file(ldm_state(pipe), tmp_path / "mine.safetensors")
    name, layer = next(
        (name.replace(".", "_"), one)
        for name, one in pipe.unet.named_modules()
        if name.endswith("attn2.to_q")
    )
    header = {"ss_new_sd_model_hash": "c" * 64, "ss_num_train_images": "99"}
    tensors = {
        f"lora_unet_{name}.lora_up.weight": torch.ones(layer.out_features, 1),
        f"lora_unet_{name}.lora_down.weight": torch.ones(1, layer.in_features),
    }
    save_file(tensors, tmp_path / "style.safetensors", metadata=header)
    words = ["audit", "--data", SHIPPED / "holdout", "--quick", "--images", 1]
    words += ["--model", tmp_path / "mine.safetensors", "--config", tmp_path / "config"]
    words += ["--lora", tmp_path / "style.safetensors", "--like", "testbed", "--steps", 1]
    words += ["--out", tmp_path / "out", "--weights", "0.5"]
    planned = bench(*words, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "note: style.safetensors was trained on another file than mine" in planned.stdout
    told = json.loads(bench(*words, "--dry-run", "--json").stdout)
    assert any("another file than mine.safetensors" in note for note in told["notes"])
    assert any("says that 99 pictures an epoch were trained" in note for note in told["notes"])
