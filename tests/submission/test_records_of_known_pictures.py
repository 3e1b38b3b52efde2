"""Records of attacks on known pictures are accepted by those who check them."""

from __future__ import annotations

import json

import pytest
import torch

from bench.registry import registry
from bench.submission.submit import submit
from bench.suite.load import load_suite
from conftest import SUITE
from one_run import Run

ATTACKS = (
    "completion",
    "cyclic",
    "dori",
    "dori_inputs",
    "exact_guidance",
    "inpainting",
    "latent_inversion",
    "noise",
)


def toml_of(value):
    return json.dumps(value)  # lists, numbers and words look alike in both


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_record_with_every_such_attack_is_accepted(tiny_folder, tmp_path, seeds):
    text = SUITE.replace('name = "tiny"', 'name = "known"').replace("steps = 3", "steps = 2")
    text = text[: text.index("[metrics.clip_score]")]
    for name in ATTACKS:
        settings = registry.find("attack", name).load().trial
        text += f"\n[attacks.{name}]\n"
        text += "".join(f"{key} = {toml_of(value)}\n" for key, value in settings.items())
    (tiny_folder / "known.toml").write_text(text)
    suite = load_suite(str(tiny_folder / "known.toml"))
    place = tmp_path / "made"
    record = Run(
        suite,
        "guidance",
        {"share": 0.5},
        place / "records",
        place / "store",
        torch.device("cpu"),
        seeds=seeds,
    ).execute()
    assert record.status == "complete"
    assert not {n for n, s in record.attacks.items() if s.value is None and "Error" in s.reason}
    (file,) = (place / "records").glob("*/*/*.json")
    told = submit(file, tmp_path / "out", None, tmp_path / "committed", suite)
    assert not told.failures and told.path, told.failures
