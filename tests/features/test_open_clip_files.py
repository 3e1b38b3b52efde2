"""A folder of open_clip shapes a network and does nothing else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.features import OpenClip
from bench.features.open_clip_files import CONFIG

CPU = torch.device("cpu")
PICTURES = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder / "clip", tmp_path / "clip")


def changed(folder, file, where, value):
    path = folder / file
    content = json.loads(path.read_text())
    *parts, last = where.split(".")
    inner = content
    for part in parts:
        inner = inner[part]
    inner[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code", True),
        ("model_cfg.text_cfg.tokenizer_kwargs.cache_dir", "/tmp"),
        ("model_cfg.text_cfg.hf_model_name", "roberta-base"),
        ("model_cfg.vision_cfg.timm_model_name", "hf-hub:somebody/model"),
        ("model_cfg.vision_cfg.timm_model_pretrained", True),
        ("model_cfg.vision_cfg.anything", 1),
        ("model_cfg.hub", "x"),
        ("model_cfg.text_cfg", 3),
        ("model_cfg", []),
    ],
)
def test_settings_that_could_do_more_are_refused(folder, where, value):
    changed(folder, CONFIG, where, value)
    with pytest.raises(UserError) as error:
        OpenClip("clip", folder, None, CPU)(PICTURES)
    assert "\n" not in str(error.value) and CONFIG in str(error.value)


def test_a_tokenizer_with_code_of_its_own_is_refused(folder):
    OpenClip("clip", folder, None, CPU)(PICTURES)  # the honest folder works
    changed(
        folder, "tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Tokenizer", None]}
    )
    with pytest.raises(UserError, match="never run"):
        OpenClip("clip", folder, None, CPU)(PICTURES)


@pytest.mark.parametrize("file", ["config.json", "deeper/config.json", "t.py"])
def test_code_is_found_wherever_it_stands(folder, tmp_path, file):
    (tmp_path / "elsewhere").mkdir()
    (folder / "deeper").symlink_to(tmp_path / "elsewhere")
    (folder / file).write_text(json.dumps({"auto_map": {"AutoTokenizer": ["t.T", None]}}))
    with pytest.raises(UserError, match="never run"):
        OpenClip("clip", folder, None, CPU)(PICTURES)


@pytest.mark.parametrize(
    ("file", "where", "value"),
    [
        ("tokenizer_config.json", "eos_token", "another"),
        ("tokenizer_config.json", "eos_token", True),
        (CONFIG, "model_cfg.text_cfg.tokenizer_kwargs.clean", "whiteSpace"),
    ],
)
def test_a_tokenizer_that_is_damaged_or_another_models_is_one_line(folder, file, where, value):
    changed(folder, file, where, value)
    with pytest.raises(UserError, match="the tokenizer of .* is damaged or another") as error:
        OpenClip("clip", folder, None, CPU).texts(["an apple"])
    assert "\n" not in str(error.value)


def test_a_network_of_no_size_that_anyone_has_is_refused(folder):
    changed(folder, CONFIG, "model_cfg.vision_cfg.width", 10**9)
    with pytest.raises(UserError, match="larger than any network"):
        OpenClip("clip", folder, None, CPU)(PICTURES)


@pytest.mark.parametrize(
    "name", ["hf-hub:laion/CLIP-ViT-B-32", "local-dir:/tmp", "ViT-Z-1", "roberta-ViT-B-32"]
)
def test_names_that_open_clip_does_not_hold_itself_are_refused(name, tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"x")
    with pytest.raises(UserError) as error:
        OpenClip(name, None, weights, CPU)(PICTURES)
    assert "\n" not in str(error.value)
