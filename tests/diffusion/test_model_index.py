"""A diffusers folder names the parts of Stable Diffusion, and nothing of it runs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from bench.base.errors import UserError
from bench.diffusion.model import load_pipeline
from bench.suite.load import load_suite


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("tokenizer", ["os", "system"]),
        ("scheduler", ["antigravity", "DDIMScheduler"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("feature_extractor", ["feature_extractor", "MyExtractor"]),
        ("anything", [3, None]),
        ("anything", ["transformers", "CLIPTextModel"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("vae", ["os", "x", "y"]),
        ("unet", {"a": 1}),
        ("image_encoder", [None, []]),
        ("vae", [[], {}]),
    ],
)
def test_parts_of_other_packages_are_refused(tiny_folder, tmp_path, part, value):
    folder = shutil.copytree(tiny_folder, tmp_path / "suite")
    path = folder / "pipeline/model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    with pytest.raises(UserError) as error:
        load_pipeline(load_suite(str(folder / "tiny.toml")), torch.device("cpu"))
    assert "\n" not in str(error.value) and "model_index.json" in str(error.value)


def test_a_model_with_python_code_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "suite")
    suite = load_suite(str(folder / "tiny.toml"))
    load_pipeline(suite, torch.device("cpu"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/my_unet.py").write_text("raise SystemExit")
    (folder / "pipeline/linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="brings code"):
        load_pipeline(suite, torch.device("cpu"))
