"""Methods and detectors on Stable Diffusion XL: those that say that they work there do, and others
are refused before anything is generated.
"""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from acting import ACTING

from bench.base.errors import UserError
from bench.base.parameters import configure
from bench.checks import detector_contracts, method_contracts
from bench.checks.contract import NotApplicable, Subject
from bench.checks.method_contracts import METHOD_CONTRACTS
from bench.checks.snapshots import first_difference, snapshot
from bench.contracts.attack import Attack, edited_weights
from bench.contracts.detector import Detector
from bench.contracts.method import FitData, Method
from bench.contracts.picture_attack import PictureAttack
from bench.diffusion.denoiser import Denoiser
from bench.registry import registry
from bench.running.prepare import prepare
from bench.suite.load import load_suite
from bench.testbed.tiny import build_tiny_xl_pipeline
from conftest import CAPTIONS, SUITE, bench
from methods._nemo_layers import RowMasks, value_layers
from methods._nemo_probe import Detection, Probe
from methods.clip_pad import ClipPad
from methods.prss import Prss

METHODS = registry.entries("method")
SUPPORTED = {name for name in METHODS if "sdxl" in METHODS[name].load().families}
THOROUGH = ("wanda", "wen", "random_tokens", "guidance")
# Contracts that say most of a method on another family of models.
SOME = (
    "a batch equals its images one by one",
    "neutral parameters equal `none`, bit for bit",
    "takes Stable Diffusion XL, where it says so",
)
PROMPTS, SEEDS = CAPTIONS[:3], [1, 2, 3]


def test_methods_that_train_and_those_that_nobody_tried_are_not_for_xl():
    none = {"adv_finetune", "baf", "concept_ablation", "esd", "siss", "uce"}
    assert METHODS.keys() - SUPPORTED == none
    assert Method.families == ("sd",)


@pytest.fixture
def denoiser():
    made = Denoiser(build_tiny_xl_pipeline(), steps=4, guidance_scale=4.0, batch_size=4)
    yield made
    made.close()


def subject_of(kind, name, values, folder):
    entry = registry.find(kind, name)
    cls = entry.load()
    return Subject(entry, cls, configure(kind, name, cls, values), values, folder)


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_a_method_keeps_its_contracts_on_xl(name, tiny_folder, monkeypatch):
    monkeypatch.setattr(method_contracts, "FAMILY", "sdxl")
    subject = subject_of("method", name, ACTING.get(name, {}), tiny_folder)
    for contract in METHOD_CONTRACTS if name in THOROUGH else SOME:
        try:
            METHOD_CONTRACTS[contract](subject)
        except NotApplicable:
            assert contract in (
                "predictions handed on are the model's",
                "neutral parameters equal `none`, bit for bit",
            )


@pytest.mark.parametrize("name", ["wen", "prss", "sail"])
def test_predictions_handed_on_are_those_of_the_pooled_text_handed_on(
    name, tiny_folder, monkeypatch
):
    monkeypatch.setattr(method_contracts, "FAMILY", "sdxl")
    method_contracts.first_predictions(subject_of("method", name, ACTING[name], tiny_folder))


def test_prss_takes_the_pooled_text_of_the_prompt_that_it_chooses(denoiser):
    method = Prss(**ACTING["prss"])
    clean = (*PROMPTS, "a red fox and a key")
    state = method.fit(denoiser, FitData(clean_prompts=clean))
    request = denoiser.request(PROMPTS, SEEDS)
    adjusted = method.adjust(denoiser, request, state)
    chosen = [not torch.equal(*pair) for pair in zip(adjusted.embeddings, request.embeddings)]
    assert any(chosen)
    for row, other in enumerate(chosen):
        found = adjusted.pooled[row]
        assert torch.equal(found, request.pooled[row]) != other
        texts = [denoiser.texts([prompt]) for prompt in (*clean, *PROMPTS)]
        (pooled,) = {
            tuple(added.pooled[0].tolist())
            for embedding, added in texts
            if torch.allclose(embedding[0], adjusted.embeddings[row], atol=1e-6)
        }
        torch.testing.assert_close(found, torch.tensor(pooled), rtol=0, atol=1e-5)


def test_nemos_noise_changes_are_of_the_prompts_pooled_text(denoiser):
    detection = Detection("ssim", "sample", "second", 2, 1)
    masks = RowMasks(value_layers(denoiser.pipe.unet))
    embedding, added = denoiser.texts([PROMPTS[0]])
    with masks.hooked():
        probe = Probe(denoiser, masks, detection)
        whole = probe.whole(embedding, added)
        with torch.no_grad():
            rows = [
                denoiser.pipe.unet(
                    noise[None],
                    probe.timestep,
                    encoder_hidden_states=embedding,
                    added_cond_kwargs={"text_embeds": added.pooled, "time_ids": added.time_ids},
                ).sample[0]
                - noise
                for noise in probe.inputs
            ]
    for own, row in zip(whole, rows, strict=True):
        wanted = (row - row.min()) / (row.max() - row.min())
        torch.testing.assert_close(own, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("zero_null", [True, False])
def test_clip_pad_swaps_the_padding_of_the_first_text_encoder_alone(zero_null):
    pipe = build_tiny_xl_pipeline(zero_null=zero_null)
    denoiser = Denoiser(pipe, 4, 4.0)
    request = denoiser.request(PROMPTS, SEEDS)
    adjusted = ClipPad(variant="pad").adjust(denoiser, request, {})
    padded = copy.deepcopy(pipe.tokenizer)
    padded.pad_token = "!"
    pipe.tokenizer = padded
    wanted, null = denoiser.request(PROMPTS, SEEDS), request.null_embeddings
    torch.testing.assert_close(adjusted.embeddings, wanted.embeddings, rtol=0, atol=1e-6)
    assert not torch.equal(adjusted.embeddings[..., :32], request.embeddings[..., :32])
    assert torch.equal(adjusted.embeddings[..., 32:], request.embeddings[..., 32:])
    assert torch.equal(adjusted.null_embeddings, null) == zero_null
    torch.testing.assert_close(adjusted.null_embeddings, wanted.null_embeddings, rtol=0, atol=1e-6)
    assert adjusted.pooled is request.pooled


@pytest.fixture(scope="module")
def xl_folder(tiny_folder, tmp_path_factory):
    """Everything that the tiny suite names, its model one of Stable Diffusion XL."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("xl") / "suite")
    shutil.rmtree(folder / "pipeline")
    build_tiny_xl_pipeline().save_pretrained(folder / "pipeline")
    scheduler = 'path = "pipeline"\nscheduler = "EulerDiscreteScheduler"'
    (folder / "tiny.toml").write_text(SUITE.replace('path = "pipeline"', scheduler))
    return folder


@pytest.mark.parametrize("name", registry.entries("detector"))
def test_a_detector_scores_the_prompts_of_a_suite_of_xl(name, xl_folder):
    subject = subject_of("detector", name, {}, xl_folder)
    assert subject.configured.works_on() == ("sd", "sdxl")
    detector_contracts.scores_every_prompt(subject)


def test_a_detector_that_evaluates_the_model_says_for_which_it_was_made():
    class Watching(Detector):
        pass

    class Evaluating(Detector):
        needs = "model"

    class Declared(Evaluating):
        families = ("sdxl",)

    assert Watching().works_on() == ("sd", "sdxl")
    assert Evaluating().works_on() == ("sd",) and Declared().works_on() == ("sdxl",)


def test_an_attack_that_only_generates_works_on_every_family():
    class Holding(Attack):
        threat = "weights"

    class Knowing(PictureAttack):
        pass

    assert Attack().works_on() == ("sd", "sdxl")
    assert Holding().works_on() == ("sd",) and Knowing().works_on() == ("sd",)


def suite_on(folder, name, text):
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


def plain(folder, name="xl", attack=""):
    """A suite of one metric, so that a run of it is short."""
    text = (folder / "tiny.toml").read_text().partition("[metrics.clip_score]")[0]
    return suite_on(folder, name, text.replace('"tiny"', f'"{name}"') + attack)


def test_a_run_and_its_plan_on_a_suite_that_points_at_a_folder_of_xl(xl_folder, tmp_path):
    suite = plain(xl_folder)
    place = ["--suite", suite, "--store", tmp_path / "store", "--records", tmp_path / "records"]
    planned = bench("run", "--method", "wen", *place, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["images_missing"] > 0
    for method in ("none", "random_tokens"):
        done = bench("run", "--method", method, *place, "--device", "cpu", "--json")
        assert done.returncode == 0, done.stderr
    records = sorted((tmp_path / "records").rglob("*.json"))
    stored = json.loads(records[0].read_text())["environment"]["execution"]["stored"]
    assert len(records) == 2 and "text_encoder_2" in stored["types"]


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_method_for_other_models_is_refused_in_one_line(xl_folder, tmp_path, more):
    suite = plain(xl_folder)
    place = ["--suite", suite, "--store", tmp_path / "store", "--records", tmp_path / "records"]
    done = bench("run", "--method", "esd", *place, *more)
    assert done.returncode == 2 and not (tmp_path / "store").exists()
    assert done.stderr.strip() == (
        "bench: method esd works on Stable Diffusion 1 and 2, and the model is Stable Diffusion XL"
    )


def test_an_attack_that_reaches_into_the_text_encoder_is_refused(xl_folder, tmp_path):
    suite = load_suite(str(plain(xl_folder, "attacked", "\n[attacks.dori]\n")))
    with pytest.raises(
        UserError, match="attack dori works on Stable Diffusion 1 and 2, and the model"
    ):
        prepare(suite, "none", {}, tmp_path, torch.device("cpu"))


def test_a_plan_names_a_model_that_cannot_be_sampled(xl_folder, tmp_path):
    folder = shutil.copytree(xl_folder, tmp_path / "suite")
    index = folder / "pipeline/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))
    done = bench("run", "--method", "none", "--suite", plain(folder), "--dry-run")
    assert done.returncode == 2 and "FluxPipeline is a flow-matching transformer" in done.stderr


def test_weights_of_the_second_text_encoder_count_as_the_methods(denoiser):
    """What a method edits there is what an attacker holds, and a check notices what it leaves."""
    weight = denoiser.pipe.text_encoder_2.text_projection.weight

    class Editing(Method):
        @contextmanager
        def attach(self, pipe, state):
            original = weight.detach().clone()
            with torch.no_grad():
                weight.add_(1)
            yield
            with torch.no_grad():
                weight.copy_(original)

    before = snapshot(denoiser.pipe)
    original = weight.detach().clone()
    with edited_weights(denoiser, Editing(), {}):
        assert torch.equal(weight, original + 1)
        difference = first_difference(before, snapshot(denoiser.pipe))
    assert "text_encoder_2.text_projection.weight" in difference
    assert first_difference(before, snapshot(denoiser.pipe)) is None
