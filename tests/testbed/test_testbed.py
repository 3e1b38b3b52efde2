"""The testbed's data is a pure function of its seed, its duplication is a count, and the shipped
bundle is what it says it is.
"""

from __future__ import annotations

import csv
import tomllib
from collections import Counter

import numpy as np
import pytest
import torch

from bench.base.digests import path_digest
from bench.registry.registry import suites
from bench.suite.load import load_suite
from bench.testbed.bundle import ACCEPTANCE, BUNDLE, info_text, read_manifest
from bench.testbed.captions import CLEAN_TEMPLATES, JOINTS
from bench.testbed.plan import PLANS
from bench.testbed.scenes import (
    CANARIES_PER_LEVEL,
    FIT_PER_LEVEL,
    canary_scenes,
    clean_scene,
    exposure_plan,
    render,
)
from bench.testbed.sprites import CODEPOINTS, concept_names
from bench.testbed.training import Job, one_cycle, train

pytest.importorskip("resvg_py", reason="rendering needs the extra `testbed`")
LEVELS = PLANS["cpu"].levels


def test_sixty_to_a_hundred_concepts_with_different_names():
    assert 60 <= len(CODEPOINTS) <= 100
    assert len(set(concept_names())) == len(CODEPOINTS)


def test_a_clean_scene_is_a_function_of_its_number_and_never_repeats():
    pictures = [render(clean_scene(3, index), 32) for index in range(300)]
    assert np.array_equal(pictures[7], render(clean_scene(3, 7), 32))
    assert len({picture.tobytes() for picture in pictures}) == 300
    assert not np.array_equal(pictures[7], render(clean_scene(4, 7), 32))
    assert not np.array_equal(pictures[7], render(clean_scene(3, 7, "unseen"), 32))


def test_a_clean_caption_names_the_objects_and_nothing_else():
    allowed = {
        template.format(joint.join(names))
        for template in CLEAN_TEMPLATES
        for joint in JOINTS
        for names in _name_pairs()
    }
    assert all(clean_scene(0, index).caption in allowed for index in range(200))


def _name_pairs():
    names = concept_names()
    return [(a,) for a in names] + [(a, b) for a in names for b in names if a != b]


def test_canaries_stand_at_every_level_in_both_splits_with_captions_of_their_own():
    canaries = canary_scenes(0, LEVELS)
    assert len(LEVELS) >= 6 and LEVELS[0] == 1
    assert (
        Counter(canary.views for canary in canaries) == dict.fromkeys(LEVELS, CANARIES_PER_LEVEL)
        and CANARIES_PER_LEVEL >= 12
    )
    assert Counter((canary.views, canary.split) for canary in canaries) == {
        (views, split): count
        for views in LEVELS
        for split, count in (
            ("fit", FIT_PER_LEVEL),
            ("memorized", CANARIES_PER_LEVEL - FIT_PER_LEVEL),
        )
    }
    assert len({canary.scene.caption for canary in canaries}) == len(canaries)
    clean_words = {word for index in range(3000) for word in clean_scene(0, index).caption.split()}
    assert all(
        len(set(canary.scene.caption.replace(":", "").replace(",", "").split()) - clean_words) >= 2
        for canary in canaries
    )


def test_the_stream_holds_every_canary_exactly_as_often_as_planned():
    plan, canaries = PLANS["cpu"], canary_scenes(0, LEVELS)
    stream = exposure_plan(0, plan.denoiser_schedule * plan.denoiser_batch, canaries)
    assert [(stream == i).sum() for i in range(len(canaries))] == [
        canary.views for canary in canaries
    ]
    assert (stream >= 0).mean() < 0.1


def test_the_views_in_the_bundle_are_those_of_the_pictures_that_were_trained_on():
    plan, canaries = PLANS["cpu"], canary_scenes(0, LEVELS)
    stream = exposure_plan(0, plan.denoiser_schedule * plan.denoiser_batch, canaries)[
        : plan.denoiser_steps * plan.denoiser_batch
    ]
    assert (stream >= 0).mean() < 0.1
    shown = {canaries[number].name: 0 for number in range(len(canaries))} | {
        canaries[n].name: c for n, c in Counter(stream.tolist()).items() if n >= 0
    }
    rows = read_canaries()
    assert {row["id"]: int(row["views"]) for row in rows} == shown
    assert {row["views"] for row in rows if row["group"] == "0"} <= {"0"}


def read_canaries():
    with (BUNDLE / "prompts/canaries.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_threshold_lets_exactly_its_share_of_negatives_through():
    from bench.testbed.acceptance import threshold_at

    negatives = np.random.default_rng(0).permutation(1000) / 1000
    assert (negatives > threshold_at(negatives, 0.001)).sum() == 1
    assert (negatives > threshold_at(negatives, 0.05)).sum() == 50
    assert (np.ones(1000) > threshold_at(np.ones(1000), 0.05)).sum() == 0
    with pytest.raises(ValueError, match="cannot resolve"):
        threshold_at(negatives[:500], 0.001)


def test_too_many_canaries_are_refused():
    with pytest.raises(ValueError, match="not under 10 %"):
        exposure_plan(0, 1000, canary_scenes(0, (1, 50)))


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return (torch.tensor([float(index % 7)]),)


def line_job(steps):
    torch.manual_seed(0)

    def loss(module, batch, generator):
        noise = torch.randn(batch[0].shape, generator=generator)
        return (module(batch[0]) - 3 * batch[0] + 0.01 * noise).square().mean()

    return Job("line", torch.nn.Linear(1, 1), Numbers(), loss, steps, 4, 0.1, seed=5)


def test_training_that_was_interrupted_ends_where_undisturbed_training_ends(tmp_path, monkeypatch):
    calm, _ = train(line_job(40), tmp_path / "calm", torch.device("cpu"))
    monkeypatch.setattr("bench.testbed.training.CHECKPOINT_SECONDS", 0.0)
    job, calls = line_job(40), []

    def stop_half_way(module, batch, generator):
        calls.append(1)
        if len(calls) == 23:
            raise KeyboardInterrupt
        return job.loss(module, batch, generator)

    with pytest.raises(KeyboardInterrupt):
        train(Job(**{**job.__dict__, "loss": stop_half_way}), tmp_path / "hit", torch.device("cpu"))
    resumed, facts = train(line_job(40), tmp_path / "hit", torch.device("cpu"))
    assert facts["steps"] == 40
    assert all(
        torch.equal(a, b)
        for a, b in zip(calm.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    job = Job(
        **{
            **line_job(5).__dict__,
            "loss": lambda module, batch, generator: module(batch[0]).sum() * float("nan"),
        }
    )
    with pytest.raises(FloatingPointError, match="training line: the loss is nan at step 0"):
        train(job, tmp_path, torch.device("cpu"))


def test_the_learning_rate_rises_and_falls_once():
    rates = [one_cycle(i / 100) for i in range(101)]
    assert (
        max(rates) == pytest.approx(1, abs=0.01)
        and rates[100] == pytest.approx(0, abs=1e-6)
        and rates[0] < 0.1
    )


def test_the_bundle_holds_the_files_of_its_manifest_and_stays_small():
    manifest = read_manifest(BUNDLE)
    there = {
        str(path.relative_to(BUNDLE)): path_digest(path)
        for path in BUNDLE.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert there == manifest["files"]
    assert sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file()) < 30 * 2**20
    assert (
        "LICENSE-OpenMoji.txt" in there
        and "CC BY-SA 4.0" in (BUNDLE / "ATTRIBUTION.md").read_text()
    )


def test_the_bundle_was_measured_and_says_every_figure():
    manifest = read_manifest(BUNDLE)
    text = info_text(manifest)
    assert all(meaning in text for _, _, meaning in ACCEPTANCE.values())
    assert set(manifest["measured"]["levels"]) == {row["group"] for row in read_canaries()}


@pytest.mark.parametrize("name", ["testbed", "testbed-quick"])
def test_the_suites_use_the_measured_threshold_and_keep_fit_and_memorized_apart(name):
    settings = tomllib.loads(suites()[name].read_text())
    assert settings["metrics"]["sscd"]["threshold"] == pytest.approx(
        read_manifest(BUNDLE)["measured"]["threshold"], abs=1e-4
    )
    suite = load_suite(name)
    fit, held_out = (
        {prompt.text for prompt in suite.prompts(role)} for role in ("fit", "memorized")
    )
    assert fit and held_out and not fit & held_out
    assert {prompt.group for prompt in suite.prompts("memorized")} >= {
        row["group"] for row in read_canaries()
    } - {"0"}
    assert len(suite.prompts("fit")) >= 10
    assert settings["metrics"]["fid"]["images"] == sum(1 for _ in suite.prompts("quality"))


def test_the_bundle_loads_as_an_ordinary_stable_diffusion_pipeline():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        BUNDLE / "pipeline", torch_dtype=torch.float32, local_files_only=True
    )
    names = dict(pipe.unet.named_modules())
    for place in ("down_blocks", "mid_block", "up_blocks"):
        inside = [name for name in names if name.startswith(place)]
        assert any(name.endswith("transformer_blocks.0.ff.net.2") for name in inside)
        assert any(name.endswith("transformer_blocks.0.attn2.to_v") for name in inside)
    assert (
        pipe.scheduler.config.beta_schedule == "scaled_linear"
        and pipe.scheduler.config.prediction_type == "epsilon"
    )


def test_references_are_the_pictures_the_model_was_trained_on():
    """Rendered anew from the seed; a newer renderer may move a pixel at an edge by a little."""
    from bench.store.store import decode_png

    plan = PLANS["cpu"]
    for canary in canary_scenes(plan.seed, plan.levels)[::11]:
        stored = decode_png((BUNDLE / "references" / f"{canary.name}.png").read_bytes())
        assert np.abs(stored.astype(int) - render(canary.scene, plan.side).astype(int)).mean() < 2
