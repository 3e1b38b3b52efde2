"""`bench testbed build` refuses a work folder of another plan, and the tiny plan gives a bundle."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from bench.base.errors import UserError
from bench.testbed import acceptance
from bench.testbed.build import Workshop, assemble_bundle, build_tokenizer, default_work, run_stages
from bench.testbed.bundle import (
    ACCEPTANCE,
    UNFINISHED,
    claim,
    hashed_files,
    info_facts,
    read_manifest,
    write_manifest,
)
from bench.testbed.plan import PLANS

pytest.importorskip("resvg_py", reason="rendering needs the extra `testbed`")
TINY = PLANS["tiny"]


def shop_in(folder, **changes):
    return Workshop(replace(TINY, **changes), folder, torch.device("cpu"), folder / "bundle")


def test_work_goes_on_in_the_cache_folder_wherever_one_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    assert default_work() == tmp_path / "testbed-build"


def test_every_caption_of_the_cpu_plan_fits_and_pristine_ones_are_cut_like_the_others(tmp_path):
    shop = Workshop(PLANS["cpu"], tmp_path, torch.device("cpu"), tmp_path / "bundle")
    build_tokenizer(shop)
    tokenizer = shop.tokenizer()
    lengths = {"pristine": [], "shown": []}
    for canary in shop.canaries:
        kind = "pristine" if canary.split == "pristine" else "shown"
        lengths[kind].append(len(tokenizer(canary.caption).input_ids))
    means = {kind: sum(counts) / len(counts) for kind, counts in lengths.items()}
    assert means["pristine"] == pytest.approx(means["shown"], abs=1.0)


def test_a_folder_begun_with_another_plan_is_refused(tmp_path):
    run_stages(shop_in(tmp_path), ("tokenizer",))
    with pytest.raises(UserError, match="begun with another plan .it differs in denoiser_batch"):
        run_stages(shop_in(tmp_path, denoiser_batch=23), ("tokenizer",))


def test_what_only_later_stages_read_may_still_change(tmp_path):
    run_stages(shop_in(tmp_path), ("tokenizer",))
    run_stages(shop_in(tmp_path, descriptor_steps=3, clean_prompts=5), ("tokenizer",))
    (tmp_path / "descriptor.json").write_text("{}")
    with pytest.raises(UserError, match="differs in descriptor_steps"):
        run_stages(shop_in(tmp_path, descriptor_steps=4, clean_prompts=5), ("tokenizer",))


def test_folders_that_are_there_are_replaced_in_a_bundle_alone(tmp_path):
    """Said before hours of work, and by the stage itself."""
    own = tmp_path / "own"
    (own / "pipeline").mkdir(parents=True)
    (own / "pipeline/model.txt").write_text("mine")
    shop = replace(shop_in(tmp_path / "work"), bundle=own)
    for begin in (lambda: run_stages(shop), lambda: assemble_bundle(shop)):
        with pytest.raises(UserError, match="holds files and no bundle"):
            begin()
    assert [path.name for path in own.rglob("*")] == ["pipeline", "model.txt"]
    for folder in (tmp_path / "new", tmp_path / "begun", tmp_path / "made"):
        folder.mkdir()
    claim(tmp_path / "begun")
    (tmp_path / "begun/pipeline").mkdir()
    write_manifest(tmp_path / "made", {"plan": {}, "stages": {}, "files": {}})
    for name in ("new", "begun", "made"):
        claim(tmp_path / name)
        assert (tmp_path / name / UNFINISHED).is_file()
    assert hashed_files(tmp_path / "made") == {}


def test_a_work_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match="holds tokenizer, which .* with --work"):
        run_stages(shop_in(tmp_path), ("tokenizer",))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BENCH_SLOW"), reason="minutes: set BENCH_SLOW=1")
def test_the_tiny_plan_gives_a_bundle_that_can_be_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    run_stages(shop_in(tmp_path))
    for name in ("CALIBRATION_IMAGES", "CLEAN_IMAGES", "REAL_IMAGES"):
        monkeypatch.setattr(acceptance, name, 32)
    monkeypatch.setattr(acceptance, "LABEL_IMAGES", 2)
    monkeypatch.setattr(acceptance, "RECOGNISED_SEEDS", 1)
    monkeypatch.setattr(acceptance, "FALSE_POSITIVE_RATE", 0.05)
    acceptance.measure_bundle(tmp_path / "bundle", tmp_path / "sheets", lambda *_: None)
    facts = info_facts(read_manifest(tmp_path / "bundle"))
    assert facts["figures"].keys() == ACCEPTANCE.keys()
    assert "quick_seconds" in facts["not_measured"] and "recognised_generated" in facts["missed"]
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {
        "canaries.png",
        "clean.png",
        "curve.png",
        "steps.png",
    }
